"""One block on a CUDA device: the implementation of the registered operation and of its way back there."""

from operator import index
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..cuda_calls import aligned, stream_of, too_large


class BlockSizes(NamedTuple):
    """What the limits of the kernels depend on."""

    tokens: int
    hidden: int
    width: int
    num_heads: int


def sizes_of(x: Tensor, fc1_weight: Tensor, num_heads: int) -> BlockSizes:
    """Of a block of x (B, T, W); numbers in a traced graph too."""
    return BlockSizes(*[index(size) for size in (x.shape[1], fc1_weight.shape[0], x.shape[2], num_heads)])


def refusal(sizes: BlockSizes, dtype: str, shared_memory: int | None = None) -> str | None:
    """Why the kernels cannot take a block of a dtype, as a part of a sentence; see `cuda_calls.too_large`."""
    core, half = _native.load(), dtype == "bfloat16"
    text = core.denoiser_block_cuda_refusal(*sizes, half)
    return text or too_large(core.denoiser_block_cuda_shared_bytes(*sizes, half), shared_memory, False)


@torch.no_grad()
def run(
    x: Tensor,
    modulation: Tensor,
    cond_kv: Tensor,
    weights: list[Tensor],
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """(B, T, W), zeros at tokens that `token_mask` leaves out; three launches."""
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)  # written whole
    if x.numel():
        _call(x, modulation, cond_kv, weights, num_heads, token_mask, key_mask, {"out": out}, backward=False)
    return out.to(x.dtype)


@torch.no_grad()
def run_backward(
    out_gradient: Tensor,
    x: Tensor,
    modulation: Tensor,
    cond_kv: Tensor,
    weights: list[Tensor],
    num_heads: int,
    token_mask: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of x, of the modulation, of cond_kv and of the weights; six launches or more."""
    options = dict(dtype=torch.float32, device=x.device)
    of_x, of_modulation, of_cond = [torch.zeros(tensor.shape, **options) for tensor in (x, modulation, cond_kv)]
    sizes = [weight.numel() for weight in weights]
    row = torch.zeros(sum(sizes), **options)
    if x.numel():
        results = {
            "out_gradient": aligned(out_gradient, torch.float32, 16),
            "x_gradient": of_x,
            "modulation_gradient": of_modulation,
            "cond_gradient": of_cond,
            "weight_gradients": row,
        }
        _call(x, modulation, cond_kv, weights, num_heads, token_mask, key_mask, results, backward=True)
    parts = row.to(x.dtype).split(sizes)
    of_weights = [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
    return of_x.to(x.dtype), of_modulation.to(x.dtype), of_cond.to(x.dtype), of_weights


def _call(x, modulation, cond_kv, weights, num_heads, token_mask, key_mask, results, *, backward: bool) -> None:
    fields, kept = arguments(x, modulation, cond_kv, weights, num_heads, token_mask, key_mask, backward=backward)
    fields |= {name: tensor.data_ptr() for name, tensor in results.items()}
    # What `kept` holds may be freed on return: torch gives its memory only to later work of the same stream.
    _native.load().denoiser_block_cuda(fields, x.dtype == torch.bfloat16, *stream_of(x), backward)
    del kept


def arguments(
    x: Tensor,
    modulation: Tensor,
    cond_kv: Tensor,
    weights: list[Tensor],
    num_heads: int,
    token_mask: Tensor | None,
    key_mask: Tensor | None,
    *,
    backward: bool,
) -> tuple[dict, list[Tensor]]:
    """The sizes and addresses that the kernels read, and the tensors that these are of."""
    sizes, half = sizes_of(x, weights[8], num_heads), x.dtype == torch.bfloat16
    samples, keys = len(x), cond_kv.shape[2]
    needed = _native.load().denoiser_block_cuda_scratch(
        samples, sizes.tokens, keys, sizes.hidden, sizes.width, num_heads, half, backward
    )
    tensors = {
        "x": aligned(x, torch.float32, 16),
        "modulation": aligned(modulation, torch.float32, 16),
        "cond_kv": aligned(cond_kv, x.dtype),
        "scratch": torch.empty(needed, dtype=torch.uint8, device=x.device),
    }
    masks = {"token_mask": token_mask, "key_mask": key_mask}
    tensors |= {name: mask.contiguous() for name, mask in masks.items() if mask is not None}
    own = [aligned(weight, x.dtype) for weight in weights]
    fields = {
        "samples": samples,
        "keys": keys,
        **sizes._asdict(),
        "modulation_rows": len(modulation),
        "token_mask": 0,
        "key_mask": 0,
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        "weights": [weight.data_ptr() for weight in own],
    }
    return fields, [*tensors.values(), *own]
