"""Ragged batches without their padding: layers that see one token at a time run on the real ones alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.dispatch import in_func_transform
from .sequences import Sequence, positions

WORTH_IT = 7 / 8
"""Of the tokens, above which all of them are computed: to leave the padding out takes time too."""


class Layout(NamedTuple):
    """Where tokens (R, W), those of the first clip first, lie in (B, T, W)."""

    lengths: Tensor  # (B,) int64
    tokens: int  # T
    index: Tensor | None  # (R,) places in (B T) of the real ones and of the first of each clip; None is all of them

    def rows(self, x: Tensor) -> Tensor:
        """(R, W) of `x` (B, T, W)."""
        flat = x.flatten(0, 1)
        return flat if self.index is None else _Pick.apply(flat, self.index)

    def padded(self, rows: Tensor) -> Tensor:
        """(B, T, W) of `rows` (R, W), zeros elsewhere."""
        shape = (self.lengths.shape[0], self.tokens, rows.shape[1])
        return (rows if self.index is None else _spread(rows, self.index, shape[0] * shape[1])).view(shape)

    def positions(self, width: int, like: Tensor) -> Tensor:
        """The sinusoidal position of each token, (R, width)."""
        table = positions(self.tokens, width, like)
        if self.index is None:
            return table.expand(self.lengths.shape[0], -1, -1).flatten(0, 1)
        return table[self.index % self.tokens]

    def last(self) -> Tensor:
        """The rows (B,) of each clip's last real token, or of its first where it has none."""
        last = self.lengths.clamp(min=1)
        if self.index is not None:
            return last.cumsum(0) - 1
        return torch.arange(last.shape[0], device=last.device) * self.tokens + last - 1


class Tokens(NamedTuple):
    """A ragged batch as layers take it."""

    x: Tensor  # (R, W)
    layout: Layout


def tokens_of(sequence: Sequence) -> Tokens:
    """The real tokens of `sequence`; all on a device, which would wait for their number, and in a traced graph."""
    x, lengths = sequence
    layout = Layout(lengths, x.shape[1], None)
    if x.is_cpu and not torch.compiler.is_compiling() and not in_func_transform():
        real = torch.arange(layout.tokens) < lengths.clamp(min=1)[:, None]
        index = real.flatten().nonzero()[:, 0]
        if len(index) <= WORTH_IT * real.numel():
            layout = layout._replace(index=index)
    return Tokens(layout.rows(x), layout)


class _Pick(torch.autograd.Function):
    """Some rows, none of them twice: torch's gradient would add up, row by row."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _spread(gradient, index, ctx.count), None


def _spread(rows: Tensor, index: Tensor, count: int) -> Tensor:
    return rows.new_zeros(count, rows.shape[1]).index_copy_(0, index, rows)
