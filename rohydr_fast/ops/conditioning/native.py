"""The conditioning by the native core. Arguments are those of the package's public function, already checked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import library  # noqa: F401  registers the operation
from .reference import Conditioning, Modulation


def conditioning(
    features: Tensor, encoded: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Conditioning:
    """See `reference.conditioning`."""
    blocks, final, cond_kv = torch.ops.rohydr_fast.conditioning(features, encoded, weights, biases)
    return Conditioning(Modulation(blocks, final), cond_kv)
