"""What every call of the operations needs."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def current_device(x: Tensor) -> AbstractContextManager:
    """Makes the device of `x` the one that kernels are launched on; a compiled graph sees to that itself."""
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return nullcontext()
    return torch.cuda.device(x.device)


def without_padding(x: Tensor, token_mask: Tensor | None) -> Tensor:
    """Zeros in `x` (B, T, n) at tokens that the mask leaves out; what is asked of their gradient is not looked at."""
    return x if token_mask is None else x.masked_fill(~token_mask[..., None], 0)
