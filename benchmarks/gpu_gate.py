"""Nothing is timed before it is right: answers of a contender against float64 on the same noise, at the timed sizes."""

import math

import torch
from accuracy import OPPONENT_LIMIT, gate_limit, gradient_limit, relative_error
from torch import Tensor
from training_gate import gradient_error

FLOOR = 1e-6
"""Of the largest value: what float32 may be off by whatever PyTorch's error is, as in tests/ops/test_cuda_loop.py."""
CAP = {"fp32": OPPONENT_LIMIT, "bf16": 0.1}
"""What nobody may be off by, however large PyTorch's error is."""
GRADIENT_CAP = {"fp32": OPPONENT_LIMIT, "bf16": 0.3}
OPPONENTS = 4
"""How many times as large as eager PyTorch's the error of an opponent may be in bfloat16."""


class Gate:
    """The float64 answers of a cell and the error of eager PyTorch in the cell's dtype.

    Args:
        exact: the answers in float64, by name: x_0, and gradients where there are any.
        eager: PyTorch's.
    """

    def __init__(self, dtype: str, exact: dict[str, Tensor], eager: dict[str, Tensor]):
        self.dtype, self.exact = dtype, exact
        self.eager_errors = self.errors(eager)

    def errors(self, found: dict[str, Tensor]) -> tuple[float, ...]:
        """Of x_0, the largest, relative to the largest value; of all gradients as a root mean square."""
        of_x_0 = relative_error(found["x_0"], self.exact["x_0"])
        if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
            return (math.inf,) * min(2, len(self.exact))
        if len(self.exact) == 1:
            return (of_x_0,)
        gradients, exact = ({k: v for k, v in part.items() if k != "x_0"} for part in (found, self.exact))
        return of_x_0, gradient_error(gradients, exact)

    def limits(self, exact: bool) -> tuple[float, ...]:
        """The largest errors that pass; a NaN does not.

        An exact contender may lose twice what PyTorch loses in the same dtype, and three times in gradients.
        """
        of_x_0, *of_gradients = self.eager_errors
        if not exact:
            opponents = [OPPONENT_LIMIT if self.dtype == "fp32" else OPPONENTS * e for e in self.eager_errors]
            caps = (CAP[self.dtype], GRADIENT_CAP[self.dtype])
            return tuple(min(limit, cap) for limit, cap in zip(opponents, caps, strict=False))
        limits = [min(max(gate_limit(True, of_x_0, self.exact["x_0"]), 2 * of_x_0 + FLOOR), CAP[self.dtype])]
        limits += [min(gradient_limit(True, error) + FLOOR, GRADIENT_CAP[self.dtype]) for error in of_gradients]
        return tuple(limits)

    def verdict(self, found: dict[str, Tensor], exact: bool) -> dict:
        """What a row says about it: gate, errors, limits and, where it failed, the reason."""
        errors, limits = self.errors(found), self.limits(exact)
        row = {"errors": list(errors), "limits": list(limits), "eager_errors": list(self.eager_errors)}
        if all(error <= limit for error, limit in zip(errors, limits, strict=True)):
            return row | {"gate": "pass"}
        what = ["x_0 is off by"] + ["the gradients by"] * (len(errors) - 1)
        parts = [f"{w} {e:.3g}, allowed {lim:.3g}" for w, e, lim in zip(what, errors, limits, strict=True)]
        return row | {"gate": "fail", "reason": "; ".join(parts)}


def release(device: str) -> None:
    """Give the memory of a cell back: compiled code, recorded steps, what the allocator keeps."""
    import gc

    from rohydr_fast.ops.reverse_loop import graphed

    torch._dynamo.reset()
    graphed._recorded.clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
