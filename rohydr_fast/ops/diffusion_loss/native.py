"""Eq. 3 by the native core. Arguments are those of the package's public functions, already checked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import library, recording
from .reference import LossTerm


def diffusion_losses(terms: Sequence[LossTerm], gradients: bool) -> list[Tensor]:
    """The loss of each term, see `reference.diffusion_loss`; `gradients` says whether any is wanted."""
    parameters = [_parameters(term) for term in terms]
    values, _ = recording.call(
        "diffusion_losses",
        [term.x_0 for term in terms],
        [term.rows for term in terms],
        [term.position for term in terms],
        [term.features for term in terms],
        [term.encoded for term in terms],
        [term.noise.sample_ids.to("cpu", torch.int64) for term in terms],
        [term.token_mask for term in terms],
        [term.key_mask for term in terms],
        [tensor for tensors in parameters for tensor in tensors],
        [len(tensors) for tensors in parameters],
        [term.num_heads for term in terms],
        [library.signed(term.noise.seed) for term in terms],
        [int(term.noise.modality) for term in terms],
        [term.loss for term in terms],
        gradients,
    )
    return list(values.unbind())


def _parameters(term: LossTerm) -> list[Tensor]:
    """`LossTerm.parameters`; layers of bfloat16 widened, since the core widens none but those that it packs."""
    dtype = term.x_0.dtype
    if any([tensor.dtype != dtype for tensors in (term.layer_weights, term.layer_biases) for tensor in tensors]):
        wide = [[tensor.to(dtype) for tensor in tensors] for tensors in (term.layer_weights, term.layer_biases)]
        term = term._replace(layer_weights=wide[0], layer_biases=wide[1])
    return term.parameters()
