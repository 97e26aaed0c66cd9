"""The registered operations of Eq. 3 for `ops.library`: the loss, whose call computes the gradients too, and its way
back, which multiplies them."""

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
        "Tensor? token_mask, Tensor? key_mask, bool gradients) -> (Tensor, Tensor, Tensor, Tensor, Tensor[])"
    ),
    "diffusion_loss_backward": "(Tensor of_loss, Tensor[] gradients, Tensor[] inputs) -> Tensor[]",
}
"""The loss, and gradients of modulation_blocks, modulation_final, encoded and weights: empty unless asked for.
`inputs` of the way back are what the gradients are of."""

_FIRST, _WEIGHTS = 3, 6  # places of modulation_blocks and of the weights among the inputs


def allocate(x_0: Tensor, *arguments, new=None) -> tuple:
    """Results without content; the fake implementation."""
    new = new or (lambda shape: x_0.new_empty(shape))
    *_, gradients = arguments
    wanted = arguments[_FIRST - 1 : _WEIGHTS - 1]
    weights = arguments[_WEIGHTS - 1]
    shapes = [tensor.shape if gradients else (0,) for tensor in (*wanted, *weights)]
    found = [new(shape) for shape in shapes]
    return x_0.new_empty(()), *found[:3], found[3:]


def run(x_0: Tensor, *arguments) -> tuple:
    """The CPU implementation."""
    rows, position, blocks, final, encoded, weights, num_heads, seed, ids, modality, loss, *masks, wanted = arguments
    _, *of_inputs, of_weights = allocate(x_0, *arguments, new=lambda shape: empty(tuple(shape), x_0.dtype))
    value = torch.zeros(1, dtype=x_0.dtype)
    if x_0.numel() == 0:
        for gradient in (*of_inputs, *of_weights):
            gradient.zero_()
        return value.view(()), *of_inputs, of_weights
    targets = (*[g.numpy() for g in of_inputs], tuple([g.numpy() for g in of_weights])) if wanted else None
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
        targets,
        native_threads(),
    )
    return value.view(()), *of_inputs, of_weights


def setup_context(ctx, inputs, output) -> None:
    x_0, rows, position, *_ = inputs
    weights = inputs[_WEIGHTS]
    refuse("diffusion_loss", x_0, weights, x_0=x_0, rows=rows, position=position)
    _, *of_inputs, of_weights = output
    gradients = [*of_inputs, *of_weights]
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.computed = inputs[-1]
    ctx.count = len(gradients)
    ctx.save_for_backward(*gradients, *inputs[_FIRST:_WEIGHTS], *weights)


def formula(ctx, of_loss: Tensor | None, *_) -> tuple:
    if of_loss is None or not ctx.computed:
        return for_inputs(ctx, {})
    saved = list(ctx.saved_tensors)
    gradients, inputs = saved[: ctx.count], saved[ctx.count :]
    found = torch.ops.rohydr_fast.diffusion_loss_backward(of_loss, gradients, inputs)
    of_inputs = {_FIRST + i: gradient for i, gradient in enumerate(found[: _WEIGHTS - _FIRST])}
    return for_inputs(ctx, {**of_inputs, _WEIGHTS: found[_WEIGHTS - _FIRST :]})


def run_backward(of_loss: Tensor, gradients: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The CPU implementation."""
    return list(torch._foreach_mul([gradient.contiguous() for gradient in gradients], of_loss))


def allocate_backward(of_loss: Tensor, gradients: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The fake implementation."""
    return [gradient.new_empty(gradient.shape) for gradient in gradients]
