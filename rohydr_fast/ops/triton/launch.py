"""Launching: at once, inside a traced graph, and in the interpreter."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .device import INTERPRETED


def launch(kernel, grid: tuple[int, ...], *tensors: Tensor | None, **sizes) -> None:
    """Run `kernel` on `grid`; a grid without programs is nothing.

    While torch traces, the launch becomes a node of the graph; the interpreter, which cannot be traced, leaves it out.
    """
    if not all(grid):
        return
    if not INTERPRETED.value and _get_current_dispatch_mode() is not None:
        torch.library.wrap_triton(kernel)[grid](*tensors, **sizes)
    elif not (INTERPRETED.value and any(isinstance(tensor, FakeTensor) for tensor in tensors)):
        kernel[grid](*tensors, **sizes)
