"""Launching: in eager mode, inside a traced graph, and in the interpreter."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .device import INTERPRETED


def launch(kernel, grid: tuple[int, ...], *tensors: Tensor | None, **sizes) -> None:
    """Run `kernel` on `grid`; a grid without programs is nothing, and a fake tensor is not touched."""
    if not all(grid):
        return
    if INTERPRETED.value:
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            kernel[grid](*tensors, **sizes)
        return
    torch.library.wrap_triton(kernel)[grid](*tensors, **sizes)
