"""The conditioning by the native core. Arguments are those of the package's public function, already checked."""

from collections.abc import Sequence

from torch import Tensor

from .. import recording
from .reference import Conditioning, Modulation


def conditioning(
    features: Tensor, encoded: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Conditioning:
    """See `reference.conditioning`."""
    blocks, final, cond_kv = recording.call("conditioning", features, encoded, list(weights), list(biases))
    return Conditioning(Modulation(blocks, final), cond_kv)
