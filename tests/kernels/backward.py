"""Drives the way back of the native core directly, as `driver` does the way there: arguments in, gradients by name out.

Names, and what has a gradient, are those of `tests.ops.gradient_cases`.
"""

import numpy as np
from torch import Tensor

from tests.ops.gradient_cases import with_leaves

from . import driver

OPERATIONS = ("reverse_loop", "denoiser", "denoiser_block")


def kept_by_forward(arguments: dict, packed, steps: int, *, kept: bool, threads: int) -> tuple:
    """What the last `steps` steps of a reverse loop leave: x_t (steps, B, T, C), and the tape, None if not `kept`.

    Both hold NaN where nothing is written: x_t of tokens that the mask leaves out, and gaps of the tape.
    """
    x = arguments["x"]
    out, states = driver.Guarded(tuple(x.shape), x.dtype), driver.Guarded((steps, *x.shape), x.dtype, 3)
    tape = None
    if kept:
        mask = driver.masks_of(arguments)[0]
        size = driver.CORE.reverse_loop_tape_size(packed, *x.shape[:2], mask, steps)
        tape = driver.Guarded((size,), x.dtype, 5)
    entry = driver.chain_tuple(arguments, packed, out.array, states.array, tape and tape.array)
    driver.CORE.reverse_loop([entry], threads)
    assert states.guards_hold() and (tape is None or tape.guards_hold()), "written outside of what is kept"
    return states.array, tape and tape.array


class WayBack:
    """A call of the way back, ready to be made.

    Args:
        operation: of `OPERATIONS`.
        out_gradient: that of the result.
        packed: native weights; None makes them.
        offset: elements that the gradients are moved by, see `driver.Guarded`.
        steps: of a reverse loop, the last so many; None is all.
        kept: whether its activations are kept by the forward, or computed again.
        threads: of the forward of a reverse loop.
    """

    def __init__(
        self,
        operation: str,
        arguments: dict,
        out_gradient: Tensor,
        *,
        packed=None,
        offset: int = 0,
        steps: int | None = None,
        kept: bool = True,
        threads: int = 1,
    ):
        packed = packed or driver.pack(arguments["weights"], arguments["num_heads"])
        self.operation, self.arguments, dtype = operation, arguments, arguments["x"].dtype
        weights = [driver.array(t) for t in driver.flat(arguments["weights"])]
        if operation == "reverse_loop":
            steps = steps or len(arguments["coefficients"])
            tables = [driver.array(table[:steps]) for table in arguments["modulation"]]
            states, tape = kept_by_forward(arguments, packed, steps, kept=kept, threads=threads)
            inputs, last = driver.chain_inputs(arguments, packed, states, steps), (tape,)
        else:
            tables = driver.modulation_rows(arguments["modulation"])
            inputs, last = driver.pass_inputs(arguments, packed), ()
        inputs = *inputs, driver.array(out_gradient.to(dtype))
        self.leaves = with_leaves(arguments, dtype)[1]  # x, modulation, cond_kv, weights
        shapes = [value.shape for value in (arguments["x"], *tables, arguments["cond_kv"], *weights)]
        targets = [driver.Guarded(tuple(shape), dtype, offset) for shape in shapes]
        self.targets = dict(zip(self.leaves, targets, strict=True))
        arrays, first_weight = [target.array for target in targets], 2 + len(tables)
        self.entry = *inputs, *arrays[:first_weight], tuple(arrays[first_weight:]), *last
        self.read = [inputs, last, weights]

    def results(self) -> dict[str, Tensor]:
        """The gradients, once it is known that they are written whole and that padding has none."""
        found = {}
        for name, target in self.targets.items():
            result, shape = target.result(), self.leaves[name].shape
            found[name] = result.reshape(shape) if result.numel() == shape.numel() else result  # of the last steps
        padding = found["['x']"][~driver.real_tokens(self.arguments)]
        absent, mask = found["['cond_kv']"][:0], self.arguments["key_mask"]
        if mask is not None:
            absent = found["['cond_kv']"][..., ~mask, :]
        assert is_positive_zero(padding) and is_positive_zero(absent), "padded tokens and absent keys must have +0"
        return found


def is_positive_zero(value: Tensor) -> bool:
    return not value.numpy().view(np.uint8).any()


def run(*calls: WayBack, threads: int = 1) -> list[dict[str, Tensor]]:
    """The gradients of the calls, of several reverse loops in one native call. No input may change."""
    before = driver.snapshot([call.read for call in calls])
    operation = calls[0].operation
    entries = [call.entry for call in calls]
    arguments = (entries,) if operation == "reverse_loop" else entries[0]
    getattr(driver.CORE, f"{operation}_backward")(*arguments, threads)
    assert driver.snapshot([call.read for call in calls]) == before, "an input was changed"
    return [call.results() for call in calls]


def gradients(operation: str, arguments: dict, out_gradient: Tensor, *, threads: int = 1, **options) -> dict:
    """Those of one call, see `WayBack`."""
    return run(WayBack(operation, arguments, out_gradient, threads=threads, **options), threads=threads)[0]


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(driver.same_bits(first[name], second[name]) for name in first)
