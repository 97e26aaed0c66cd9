"""The registered operations of Eq. 3 for `ops.library`: the losses, whose call computes the gradients too, and their
way back, which multiplies them."""

from itertools import accumulate, islice
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..chain_lists import SEED_MASK, by_chain
from ..gradients import for_inputs, refuse
from ..memory import empty
from ..packing import CACHE, LAYERS, as_array, as_optional_array, native_threads

SCHEMAS = {
    "diffusion_losses": (
        "(Tensor[] x_0, Tensor[] rows, Tensor[] position, Tensor[] features, Tensor[] encoded, Tensor[] sample_ids, "
        "Tensor?[] token_mask, Tensor?[] key_mask, Tensor[] parameters, int[] parameter_counts, int[] num_heads, "
        "SymInt[] seeds, int[] modalities, str[] losses, bool gradients) -> (Tensor, Tensor)"
    ),
    "diffusion_losses_backward": "(Tensor of_losses, Tensor gradients, SymInt[] sizes, Tensor[] inputs) -> Tensor",
}
"""The loss of each term, and in one row the gradients of its encoded and its parameters, one after the other, term by
term; the row is empty unless asked for. `sizes` of the way back are those of the terms in the row, and `inputs` what
the gradients are of, where it may be differentiated, and nothing otherwise."""


class TermLists(NamedTuple):
    """The arguments of the operation, with an entry for each term; `parameters` holds those of all, one after the
    other."""

    x_0: list[Tensor]
    rows: list[Tensor]
    position: list[Tensor]
    features: list[Tensor]
    encoded: list[Tensor]
    sample_ids: list[Tensor]
    token_mask: list[Tensor | None]
    key_mask: list[Tensor | None]
    parameters: list[Tensor]
    parameter_counts: list[int]
    num_heads: list[int]
    seeds: list[int]
    modalities: list[int]
    losses: list[str]
    gradients: bool

    def inputs(self) -> list[list[Tensor]]:
        """What the gradients of each term are of."""
        parameters = by_chain(self.parameters, self.parameter_counts)
        return [[encoded, *tensors] for encoded, tensors in zip(self.encoded, parameters, strict=True)]

    def sizes(self) -> list[int]:
        """Of each term in the row of gradients."""
        if not self.gradients:
            return [0] * len(self.x_0)
        return [sum([tensor.numel() for tensor in inputs]) for inputs in self.inputs()]


_ENCODED, _PARAMETERS = TermLists._fields.index("encoded"), TermLists._fields.index("parameters")
_TENSOR_FIELDS = _PARAMETERS + 1
"""The first so many fields hold tensors."""


def allocate(x_0: list[Tensor], *arguments) -> tuple[Tensor, Tensor]:
    """The fake implementation."""
    return x_0[0].new_empty(len(x_0)), x_0[0].new_empty(sum(TermLists(x_0, *arguments).sizes()))


def run(*arguments) -> tuple[Tensor, Tensor]:
    """The CPU implementation."""
    terms, calls = TermLists(*arguments), []
    dtype, sizes = terms.x_0[0].dtype, terms.sizes()
    values, row = torch.zeros(len(terms.x_0), dtype=dtype), empty((sum(sizes),), dtype)
    outs, gradients = values.numpy(), row.numpy()
    parameters = by_chain(terms.parameters, terms.parameter_counts)
    for i, end in enumerate(accumulate(sizes)):
        own = gradients[end - sizes[i] : end]
        if terms.x_0[i].numel() == 0:
            own[:] = 0
        else:
            calls.append(_native_term(terms, i, parameters[i], outs[i : i + 1], own if terms.gradients else None))
    if calls:
        _native.load().diffusion_loss(calls, native_threads())
    return values, row


def _native_term(terms: TermLists, i: int, parameters: list[Tensor], out, gradients) -> tuple:
    """What `_C.diffusion_loss` reads of term `i`, and where it writes."""
    blocks = (len(parameters) - 10) // 16  # L: 4 + 12 L of the network, 6 + 2 L of the modulation, 2 L of K and V
    network, condition = 4 + 12 * blocks, len(parameters) - 2 * blocks
    packed = [*parameters[:network], *parameters[condition:]]
    return (
        CACHE.get("diffusion_loss", packed, terms.num_heads[i], terms.x_0[i].dtype == torch.float64),
        *[as_array(part[i]) for part in (terms.x_0, terms.rows, terms.position, terms.features, terms.encoded)],
        LAYERS.get("conditioning", parameters[network::2] + parameters[network + 1 :: 2]),
        terms.seeds[i] & SEED_MASK,
        as_array(terms.sample_ids[i]),
        terms.modalities[i],
        terms.losses[i],
        as_optional_array(terms.token_mask[i]),
        as_optional_array(terms.key_mask[i]),
        out,
        gradients,
    )


def setup_context(ctx, inputs, output) -> None:
    terms = TermLists(*inputs)
    for i, parameters in enumerate(by_chain(terms.parameters, terms.parameter_counts)):
        given = {name: getattr(terms, name)[i] for name in ("x_0", "rows", "position", "features")}
        refuse("diffusion_losses", terms.x_0[i], parameters, **given)
    _, row = output
    ctx.mark_non_differentiable(row)
    ctx.set_materialize_grads(False)
    ctx.row, ctx.counts, ctx.numbers = row, [len(part) for part in terms[:_TENSOR_FIELDS]], terms[_TENSOR_FIELDS:]
    ctx.save_for_backward(*[tensor for part in terms[:_TENSOR_FIELDS] for tensor in part])


def formula(ctx, of_losses: Tensor | None, *_) -> tuple:
    """The row becomes the gradients. A graph that was kept and goes back again has none left, and the call is repeated:
    whoever got the gradients may have changed them."""
    saved = iter(ctx.saved_tensors)
    terms = TermLists(*[list(islice(saved, count)) for count in ctx.counts], *ctx.numbers)
    if of_losses is None or not terms.gradients:
        return for_inputs(ctx, {})
    inputs, sizes, row = terms.inputs(), terms.sizes(), ctx.row
    flat = [tensor for tensors in inputs for tensor in tensors]
    if row is None:
        row = run(*terms)[1]
    if torch.is_grad_enabled() or type(row) is not Tensor:  # to be differentiated, or traced
        twice = flat if torch.is_grad_enabled() else []
        row = torch.ops.rohydr_fast.diffusion_losses_backward(of_losses, row, sizes, twice)
    else:
        ctx.row = None
        for part, of_loss in zip(row.split(sizes), of_losses.tolist(), strict=True):
            if of_loss != 1:
                part.mul_(of_loss)
    found = torch._utils._unflatten_dense_tensors(row, flat)  # views
    by_term = by_chain(found, [len(tensors) for tensors in inputs])
    of_parameters = [gradient for gradients in by_term for gradient in gradients[1:]]
    return for_inputs(ctx, {_ENCODED: [gradients[0] for gradients in by_term], _PARAMETERS: of_parameters})


def run_backward(of_losses: Tensor, gradients: Tensor, sizes: list[int], inputs: list[Tensor]) -> Tensor:
    """The CPU implementation."""
    row = empty(gradients.shape, gradients.dtype)
    parts = zip(gradients.split(sizes), row.split(sizes), of_losses.unbind(), strict=True)
    for part, out, of_loss in parts:
        torch.mul(part, of_loss, out=out)
    return row


def allocate_backward(of_losses: Tensor, gradients: Tensor, sizes: list[int], inputs: list[Tensor]) -> Tensor:
    """The fake implementation."""
    return gradients.new_empty(gradients.shape)
