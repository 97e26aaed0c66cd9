"""What calls of the CUDA kernels have in common: memory, the stream, and the limit of shared memory."""

import torch
from torch import Tensor


def too_large(needed: int, shared_memory: int | None, backward: bool) -> str | None:
    """Why a block cannot have so many bytes of shared memory, as a part of a sentence.

    Args:
        shared_memory: bytes that a block may have; by default those of the current device.
        backward: they are those of a way back.
    """
    if shared_memory is None:
        shared_memory = torch.cuda.get_device_properties(torch.cuda.current_device()).shared_memory_per_block_optin
    if needed <= shared_memory:
        return None
    what = "the way back of these sizes" if backward else "these sizes"
    return f"a block needs {needed} bytes of shared memory for {what}, and this device has {shared_memory}"


def stream_of(tensor: Tensor) -> tuple[int, int]:
    """The number of the tensor's device, and the address of its current stream."""
    device = tensor.device
    number = torch.cuda.current_device() if device.index is None else device.index
    return number, torch.cuda.current_stream(device).cuda_stream


def aligned(tensor: Tensor, dtype: torch.dtype, size: int | None = None) -> Tensor:
    """In `dtype`, dense, and at a multiple of `size` bytes, or of its elements."""
    if tensor.dtype != dtype:  # asking torch to do nothing, for some fifty weights, would cost more than the launch
        tensor = tensor.to(dtype)
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % (size or tensor.element_size()) == 0 else tensor.clone()
