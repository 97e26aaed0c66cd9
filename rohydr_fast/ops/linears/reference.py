"""Linear layers of equal shape on the same input, plain."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, parts: int = 1, rows_first: bool = False
) -> Tensor:
    """y_i = x W_i' + b_i for n layers, stacked.

    Args:
        x: (R, D).
        weights: n times (P C, D).
        biases: n times (P C,).
        parts: P, into how many pieces the outputs of each layer are cut.
        rows_first: the rows are the first dimension of the result, not the second.

    Returns:
        (n P, R, C), or (R, n P, C).
    """
    outputs = [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    pieces = [piece for output in outputs for piece in output.chunk(parts, -1)]
    return torch.stack(pieces, 1 if rows_first else 0)
