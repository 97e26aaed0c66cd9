"""Linear layers by the native core. Arguments are those of the package's public function, already checked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import library  # noqa: F401  registers the operation


def linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, parts: int = 1, rows_first: bool = False
) -> Tensor:
    """See `reference.linears`."""
    return torch.ops.rohydr_fast.linears(x, list(weights), list(biases), parts, rows_first)
