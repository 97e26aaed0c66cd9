"""Dropout of F and the other layers around the diffusion."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIXTEEN_BITS = 2**16


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`torch.nn.functional.dropout` of any shape, by numbers of torch's default generator.

    On the CPU torch draws 64 bits for each element, one after another on one thread: a quarter of the time of F. Here
    an element takes 16 of them, so that p is rounded to a multiple of 1 / 65536, and the rest is scaled by just that.
    """
    if not training or p == 0:
        return x
    dropped = round(p * _SIXTEEN_BITS)
    if not x.is_cpu or dropped == _SIXTEEN_BITS or torch.compiler.is_compiling():
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = bits.view(torch.int16)[: x.numel()].view(x.shape)  # -32768 to 32767
    kept = (numbers >= dropped - _SIXTEEN_BITS // 2).to(x.dtype)
    return x * kept.mul_(_SIXTEEN_BITS / (_SIXTEEN_BITS - dropped))


class Dropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape."""
        return dropout(x, self.p, self.training)
