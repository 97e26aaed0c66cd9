"""Dropout of F and the other layers around the diffusion."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.dispatch import in_func_transform

_SIXTEEN_BITS = 2**16


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`torch.nn.functional.dropout` of any shape, by numbers of torch's default generator.

    On the CPU torch draws 64 bits for each element, one after another on one thread: a quarter of the time of F. Here
    an element takes 16 of them, so that p is rounded to a multiple of 1 / 65536, and the rest is scaled by just that.
    """
    if not training or p == 0:
        return x
    return x * _factors(x, p) if _drawn_here(x, p) else F.dropout(x, p)


def relu_dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`dropout(relu(x), p, training)`, which keeps its result alone for the way back: where it is 0, no gradient is."""
    if not training or p == 0 or not _drawn_here(x, p):
        return dropout(F.relu(x), p, training)
    return _ReluDropout.apply(x, p)


class Dropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape."""
        return dropout(x, self.p, self.training)


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        ctx.scale = _scale(p)
        result = F.relu(x).mul_(_factors(x, p))
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, result, 0) * ctx.scale, None


def _drawn_here(x: Tensor, p: float) -> bool:
    traced = torch.compiler.is_compiling() or in_func_transform()
    return x.is_cpu and round(p * _SIXTEEN_BITS) < _SIXTEEN_BITS and not traced


def _scale(p: float) -> float:
    return _SIXTEEN_BITS / (_SIXTEEN_BITS - round(p * _SIXTEEN_BITS))


def _factors(x: Tensor, p: float) -> Tensor:
    """For each element 0, or what it is scaled by."""
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = bits.view(torch.int16)[: x.numel()].view(x.shape)  # -32768 to 32767
    kept = numbers >= round(p * _SIXTEEN_BITS) - _SIXTEEN_BITS // 2
    return kept.to(x.dtype).mul_(_scale(p))
