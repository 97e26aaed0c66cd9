"""The kernels as operations of torch: `torch.ops.rohydr_fast.triton_*`, each with its way back.

On a device they are made by `torch.library.triton_op`, through which `torch.compile` sees single kernels. The
interpreter's kernels are plain functions on the memory of the CPU, which nothing can trace: there an operation is a
closed one with the same signature. Inputs may have any strides; results are fresh and contiguous. Gradients are
differentiable once.
"""

import torch
from torch import Tensor

from ...errors import BackendUnavailable
from ..gradients import for_inputs, once
from . import block
from .attention import attention, attention_gradients
from .device import INTERPRETED
from .linear import linear
from .linear_backward import (
    input_gradient,
    modulated_input_gradient,
    row_parts,
    sum_of_rows,
    weight_gradient,
    weight_parts,
)


def _register(function):
    """`function` as the operation of its name; without launches it gives the shapes of the results."""
    name = f"rohydr_fast::{function.__name__}"
    if not INTERPRETED.value:
        return torch.library.triton_op(name, function, mutates_args=())
    operation = torch.library.custom_op(name, function, mutates_args=())
    operation.register_fake(function)
    return operation


def _contiguous(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _mask(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous()


@_register
def triton_block(
    x: Tensor,
    rows: Tensor,
    cond_kv: Tensor,
    weights: list[Tensor],
    num_heads: int,
    token_mask: Tensor | None,
    key_mask: Tensor | None,
    keep: bool,
) -> list[Tensor]:
    """`block.forward`: the result of `denoiser_block`, and with `keep` what its way back reads."""
    x, rows, cond_kv = _contiguous([x, rows, cond_kv])
    masks = (_mask(token_mask), _mask(key_mask))
    return block.forward(x, rows, cond_kv, _contiguous(weights), num_heads, *masks, keep)


@_register
def triton_block_backward(
    gradient: Tensor,
    x: Tensor,
    rows: Tensor,
    cond_kv: Tensor,
    weights: list[Tensor],
    num_heads: int,
    token_mask: Tensor | None,
    key_mask: Tensor | None,
    kept: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`block.backward`: gradients of x, rows, cond_kv, and of all weights in one row."""
    gradient, x, rows, cond_kv = _contiguous([gradient, x, rows, cond_kv])
    masks = (_mask(token_mask), _mask(key_mask))
    return block.backward(gradient, x, rows, cond_kv, _contiguous(weights), num_heads, *masks, kept)


@_register
def triton_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result (B, T, W) of `cross_attention`, and (B, H, T) the logarithms that its way back reads."""
    return attention(*_contiguous([q, k, v]), num_heads, _mask(key_mask))


@_register
def triton_attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    norm: Tensor,
    num_heads: int,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; `out` and `norm` are what `triton_attention` gave."""
    gradient, q, k, v, out, norm = _contiguous([gradient, q, k, v, out, norm])
    results = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    attention_gradients(gradient, q, k, v, out, norm, num_heads, _mask(key_mask), results)
    return results


@_register
def triton_embedding(x: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
    """x W' + b + position: (B, T, C), (W, C), (W,), (T, W) to (B, T, W)."""
    x, weight, bias, position = _contiguous([x, weight, bias, position])
    return linear(x, weight, bias, residual=position[None])[0]


@_register
def triton_embedding_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of weight and bias in one row, and of the position."""
    gradient, x, weight = _contiguous([gradient, x, weight])
    parts = weight_parts(gradient, [weight, weight[:, 0]])
    weight_gradient(gradient, x, None, None, parts, 0)
    return input_gradient(gradient, weight), parts.sum(0).to(x.dtype), gradient.sum(0)


@_register
def triton_head(x: Tensor, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """modulate(x) W' + b: (B, T, W), (1 or B, 2, W), (N, W), (N,) to (B, T, N)."""
    x, rows, weight, bias = _contiguous([x, rows, weight, bias])
    return linear(x, weight, bias, modulation=rows)[0]


@_register
def triton_head_backward(gradient: Tensor, x: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the rows, and of weight and bias in one row."""
    gradient, x, rows, weight = _contiguous([gradient, x, rows, weight])
    of_rows, parts = row_parts(x, 2), weight_parts(x, [weight, weight[:, 0]])
    weight_gradient(gradient, x, None, rows, parts, 0)
    of_x = modulated_input_gradient(gradient, weight, x, rows, None, of_rows)
    return of_x, sum_of_rows(of_rows, rows), parts.sum(0).to(x.dtype)


def _like(row: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """A row of gradients as those of `weights`."""
    parts = row.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def _block_setup(ctx, inputs, output) -> None:
    x, rows, cond_kv, weights, ctx.num_heads, token_mask, key_mask, keep = inputs
    if not keep:
        raise BackendUnavailable(
            "torch.ops.rohydr_fast.triton_block: keep must be True where an input requires a gradient, got False. Call "
            "the function of rohydr_fast.ops, which sees to it, or use torch.no_grad()."
        )
    kept = output[1:]
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.weights = len(weights)
    ctx.save_for_backward(x, rows, cond_kv, token_mask, key_mask, *weights, *kept)


def _block_formula(ctx, gradients) -> tuple:
    if gradients[0] is None:
        return for_inputs(ctx, {})
    x, rows, cond_kv, token_mask, key_mask, *rest = ctx.saved_tensors
    weights, kept = rest[: ctx.weights], rest[ctx.weights :]
    of_x, of_rows, of_kv, row = torch.ops.rohydr_fast.triton_block_backward(
        gradients[0], x, rows, cond_kv, weights, ctx.num_heads, token_mask, key_mask, kept
    )
    return for_inputs(ctx, {0: of_x, 1: of_rows, 2: of_kv, 3: _like(row, weights)})


def _attention_setup(ctx, inputs, output) -> None:
    q, k, v, ctx.num_heads, key_mask = inputs
    out, norm = output
    ctx.mark_non_differentiable(norm)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, norm, key_mask)


def _attention_formula(ctx, gradient, _) -> tuple:
    if gradient is None:
        return for_inputs(ctx, {})
    q, k, v, out, norm, key_mask = ctx.saved_tensors
    found = torch.ops.rohydr_fast.triton_attention_backward(gradient, q, k, v, out, norm, ctx.num_heads, key_mask)
    return for_inputs(ctx, dict(enumerate(found)))


def _embedding_setup(ctx, inputs, output) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, bias)


def _embedding_formula(ctx, gradient) -> tuple:
    x, weight, bias = ctx.saved_tensors
    of_x, row, of_position = torch.ops.rohydr_fast.triton_embedding_backward(gradient, x, weight)
    return for_inputs(ctx, dict(enumerate([of_x, *_like(row, [weight, bias]), of_position])))


def _head_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _head_formula(ctx, gradient) -> tuple:
    x, rows, weight, bias = ctx.saved_tensors
    of_x, of_rows, row = torch.ops.rohydr_fast.triton_head_backward(gradient, x, rows, weight)
    return for_inputs(ctx, dict(enumerate([of_x, of_rows, *_like(row, [weight, bias])])))


triton_block.register_autograd(_block_formula, setup_context=_block_setup)
triton_attention.register_autograd(_attention_formula, setup_context=_attention_setup)
triton_embedding.register_autograd(_embedding_formula, setup_context=_embedding_setup)
triton_head.register_autograd(_head_formula, setup_context=_head_setup)
for _operation, _name in (
    (triton_block_backward, "denoiser_block"),
    (triton_attention_backward, "cross_attention"),
    (triton_embedding_backward, "denoiser"),
    (triton_head_backward, "denoiser"),
):
    _operation.register_autograd(once(_name, "triton"))
