"""The registered operations of Eq. 3 for `ops.library`: the loss, whose call computes the gradients too, and its way
back, which multiplies them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _native
from ..chain_lists import SEED_MASK
from ..gradients import for_inputs, refuse
from ..memory import empty
from ..packing import CACHE, as_array, as_optional_array, native_threads

SCHEMAS = {
    "diffusion_loss": (
        "(Tensor x_0, Tensor rows, Tensor position, Tensor modulation_blocks, Tensor modulation_final, "
        "Tensor encoded, Tensor[] weights, int num_heads, SymInt seed, Tensor sample_ids, int modality, str loss, "
        "Tensor? token_mask, Tensor? key_mask, bool gradients) -> (Tensor, Tensor)"
    ),
    "diffusion_loss_backward": "(Tensor of_loss, Tensor gradients, Tensor[] inputs) -> Tensor",
}
"""The loss, and in one row the gradients of modulation_blocks, modulation_final, encoded and weights, one after the
other; the row is empty unless asked for. `inputs` of the way back are what the gradients are of, where it may be
differentiated, and nothing otherwise."""

_FIRST, _WEIGHTS = 3, 6  # places of modulation_blocks and of the weights among the inputs


def _inputs(arguments: Sequence) -> list[Tensor]:
    """What the gradients are of, from the arguments after x_0."""
    *tensors, weights = arguments[_FIRST - 1 : _WEIGHTS]
    return [*tensors, *weights]


def allocate(x_0: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    """The fake implementation."""
    return x_0.new_empty(()), x_0.new_empty(_size(arguments))


def _size(arguments: Sequence) -> int:
    return sum([tensor.numel() for tensor in _inputs(arguments)]) if arguments[-1] else 0


def run(x_0: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    """The CPU implementation."""
    rows, position, blocks, final, encoded, weights, num_heads, seed, ids, modality, loss, *masks, wanted = arguments
    value = torch.zeros(1, dtype=x_0.dtype)
    row = empty((_size(arguments),), x_0.dtype)
    if x_0.numel() == 0:
        return value.view(()), row.zero_()
    _native.load().diffusion_loss(
        CACHE.get("diffusion_loss", weights, num_heads, x_0.dtype == torch.float64),
        as_array(x_0),
        as_array(rows),
        loss,
        *[as_array(tensor) for tensor in (position, blocks, final, encoded)],
        seed & SEED_MASK,
        as_array(ids),
        modality,
        *[as_optional_array(mask) for mask in masks],
        value.numpy(),
        row.numpy() if wanted else None,
        native_threads(),
    )
    return value.view(()), row


def setup_context(ctx, inputs, output) -> None:
    x_0, rows, position, *_ = inputs
    weights = inputs[_WEIGHTS]
    refuse("diffusion_loss", x_0, weights, x_0=x_0, rows=rows, position=position)
    _, row = output
    ctx.mark_non_differentiable(row)
    ctx.set_materialize_grads(False)
    ctx.computed = inputs[-1]
    ctx.save_for_backward(row, *inputs[_FIRST:_WEIGHTS], *weights)


def formula(ctx, of_loss: Tensor | None, *_) -> tuple:
    if of_loss is None or not ctx.computed:
        return for_inputs(ctx, {})
    row, *inputs = ctx.saved_tensors
    twice = torch.is_grad_enabled()
    row = torch.ops.rohydr_fast.diffusion_loss_backward(of_loss, row, inputs if twice else [])
    found = torch._utils._unflatten_dense_tensors(row, inputs)  # views
    of_inputs = {_FIRST + i: gradient for i, gradient in enumerate(found[: _WEIGHTS - _FIRST])}
    return for_inputs(ctx, {**of_inputs, _WEIGHTS: found[_WEIGHTS - _FIRST :]})


def run_backward(of_loss: Tensor, gradients: Tensor, inputs: list[Tensor]) -> Tensor:
    """The CPU implementation."""
    return torch.mul(gradients, of_loss, out=empty(gradients.shape, gradients.dtype))


def allocate_backward(of_loss: Tensor, gradients: Tensor, inputs: list[Tensor]) -> Tensor:
    """The fake implementation."""
    return gradients.new_empty(gradients.shape)
