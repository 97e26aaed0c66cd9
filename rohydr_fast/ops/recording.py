"""A call of a registered operation whose gradient is wanted.

`torch.library.register_autograd` walks through the arguments as nested structures, several times a call: with the
hundreds of parameters of a training step that takes half a millisecond, of the 17 of a step of the smallest models. In
eager mode the same formulas are reached here by lists. `torch.compile`, and whoever calls `torch.ops` directly, take
torch's way.
"""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from . import library


def call(op: str, *arguments) -> Tensor | tuple:
    """`torch.ops.rohydr_fast.<op>`, of all of its arguments."""
    function = getattr(torch.ops.rohydr_fast, op)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*arguments)
    made = _Call(function, library.FORMULAS[op], arguments)
    tensors = [tensor for argument in arguments for tensor in _tensors(argument)]
    return made.results(_Recorded.apply(made, *tensors))


class _Call:
    """One call with its arguments and results as they are, where autograd sees all tensors of them in a row."""

    def __init__(self, function, formula: tuple, arguments: tuple):
        self.function, self.arguments, (self.formula, self.setup_context) = function, arguments, formula
        self.slots: list[int | None] = []  # of the results

    def run(self, ctx) -> tuple[Tensor, ...]:
        """The results in a row."""
        found = self.function(*self.arguments)
        self.setup_context(ctx, self.arguments, found)
        found = found if isinstance(found, tuple) else (found,)
        self.slots = [_slot(result) for result in found]
        return tuple([tensor for result in found for tensor in _tensors(result)])

    def results(self, row: tuple[Tensor, ...]) -> Tensor | tuple:
        """As the operation returns them."""
        found = _cut(row, self.slots)
        return tuple(found) if len(found) > 1 else found[0]


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        row = call.run(ctx)
        ctx.formula, ctx.results, ctx.inputs = call.formula, call.slots, [_slot(given) for given in call.arguments]
        return row

    @staticmethod
    def backward(ctx, *gradients: Tensor | None) -> tuple:
        in_a_row = ctx.needs_input_grad
        ctx.needs_input_grad = _cut(in_a_row[1:], ctx.inputs)
        try:
            found = ctx.formula(ctx, *_cut(gradients, ctx.results))
        finally:
            ctx.needs_input_grad = in_a_row
        row: list[Tensor | None] = [None]
        for gradient, slot in zip(found, ctx.inputs, strict=True):
            row += [] if slot == _OTHER else [gradient] if slot is None else gradient
        return tuple(row)


_OTHER = -1


def _slot(value) -> int | None:
    """None for a tensor, of a list of tensors how many, and `_OTHER` for what has no gradient; masks may be missing."""
    if isinstance(value, Tensor):
        return None
    return len(value) if isinstance(value, list) and all([isinstance(t, Tensor) for t in value]) else _OTHER


def _tensors(value) -> list[Tensor]:
    slot = _slot(value)
    return [value] if slot is None else [] if slot == _OTHER else value


def _cut(row: Sequence, slots: Sequence[int | None]) -> list:
    """The structure of `slots` with what stands in the row; None for what has no place there."""
    values = iter(row)
    return [next(values) if n is None else None if n == _OTHER else list(islice(values, n)) for n in slots]
