"""Random arguments of the public operations: a sentence that names the argument, or a result, and nothing else."""

import math
import warnings
from collections import Counter

import numpy as np
import torch

from rohydr_fast.errors import RohydrError
from rohydr_fast.ops.conditioning import conditioning
from rohydr_fast.ops.cross_attention import cross_attention
from rohydr_fast.ops.denoiser import denoiser
from rohydr_fast.ops.denoiser_block import denoiser_block
from rohydr_fast.ops.diffusion_loss import diffusion_loss
from rohydr_fast.ops.reverse_loop import reverse_loop
from tests.ops.inputs import attention_inputs, block_inputs, denoiser_inputs, loop_inputs, loss_inputs


def conditioning_inputs() -> dict:
    """Of one block."""
    width, outputs = 4, (4, 4, 36, 8, 8)
    weights = [torch.randn(rows, 3 if i == 0 else width) for i, rows in enumerate(outputs)]
    biases = [torch.randn(rows) for rows in outputs]
    return {"features": torch.randn(5, 3), "encoded": torch.randn(2, 3, width), "weights": weights, "biases": biases}


OPERATIONS = {
    conditioning: conditioning_inputs,
    cross_attention: attention_inputs,
    denoiser_block: block_inputs,
    denoiser: denoiser_inputs,
    diffusion_loss: loss_inputs,
    reverse_loop: loop_inputs,
}
NUMBERS = {0, 1, -1, 2, 3, 7, 2**31, 2**63, 2**64, -(2**70), 1.5}
OTHERS = [None, True, "text", b"bytes", 1j, object(), (), [], {}, np.float32(2), np.ones((2, 2)), math.nan, range(3)]


class Values:
    """Draws what stands in the place of an argument."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def pick(self, options):
        options = list(options)
        return options[int(self.rng.integers(len(options)))]

    def instead_of(self, value):
        """Something else, of a tensor mostly another tensor; of a tuple one member."""
        if isinstance(value, tuple | list) and len(value) and self.rng.random() < 0.8:
            place = int(self.rng.integers(len(value)))
            members = [self.instead_of(part) if i == place else part for i, part in enumerate(value)]
            return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
        if isinstance(value, torch.Tensor) and self.rng.random() < 0.8:
            return self.pick([self.of_another_kind, self.of_another_shape, self.elsewhere])(value)
        return self.pick([*NUMBERS, *OTHERS, torch.zeros(2, 3)])

    def of_another_kind(self, x: torch.Tensor) -> torch.Tensor:
        kinds = [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.int8, torch.int64, torch.bool]
        return x.to(self.pick(kinds))

    def of_another_shape(self, x: torch.Tensor) -> torch.Tensor:
        changes = [
            lambda: x[None],
            lambda: x.flatten(),
            lambda: x[:0] if x.dim() else x,
            lambda: x.movedim(0, -1) if x.dim() else x,
            lambda: torch.cat([x, x], -1) if x.dim() else x[None],
            lambda: x[..., :1].expand(x.shape) if x.dim() else x,
            lambda: x.new_zeros(()),
        ]
        return self.pick(changes)()

    def elsewhere(self, x: torch.Tensor) -> torch.Tensor:
        layouts = [
            lambda: x.to("meta"),
            lambda: x.to_sparse() if x.dim() else x,
            lambda: torch.nested.nested_tensor(list(x)) if x.dim() > 1 and len(x) else x,
            lambda: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
            lambda: x.conj() if x.is_complex() else x.to(torch.complex64).conj(),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors are a prototype
            return self.pick(layouts)()


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` calls, each with one argument replaced."""
    values, counts = Values(seed), Counter()
    torch.manual_seed(seed)
    valid = {operation: make() for operation, make in OPERATIONS.items()}
    for number in range(count):
        operation = values.pick(OPERATIONS)
        name = values.pick(valid[operation])
        changed = values.instead_of(valid[operation][name])
        try:
            operation(**valid[operation] | {name: changed})
        except RohydrError as refusal:
            counts["refused"] += 1
            assert str(refusal).startswith(operation.__name__), f"call {number} of seed {seed}: {refusal}"
            continue
        except Exception as error:
            where = f"call {number} of seed {seed}, {operation.__name__}, {name}"
            raise AssertionError(f"{where}: {type(error).__name__} for {type(changed)}") from error
        counts["returned"] += 1
    return {"calls": count, **counts}
