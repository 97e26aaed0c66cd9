"""How far a contender may be from float64 before it gets no time."""

import numpy as np
import torch

OPPONENT_LIMIT = 1e-3
"""What an opponent may be off by, relative to the largest value: enough to show that it solves the same task."""


def relative_error(x: torch.Tensor, reference: torch.Tensor) -> float:
    """max |x - reference| / max |reference|, in float64."""
    return float((x.double() - reference).abs().max() / reference.abs().max())


def gate_limit(exact: bool, float32_error: float, reference: torch.Tensor) -> float:
    """The largest relative error that passes.

    An exact contender may lose twice what float32 itself loses in the hoisted loop, whose sums have another order,
    and one unit in the last place of the largest value.
    """
    if not exact:
        return OPPONENT_LIMIT
    largest = float(reference.abs().max())
    return 2 * float32_error + float(np.spacing(np.float32(largest))) / largest


def gradient_limit(exact: bool, float32_error: float) -> float:
    """The largest relative error of losses and gradients that passes.

    An exact contender may lose three times what float32 itself loses in PyTorch, and four units in the last place: the
    rule of tests/ops/test_gradients.py.
    """
    return 3 * float32_error + 4 * float(np.finfo(np.float32).eps) if exact else OPPONENT_LIMIT


def one_line(failure: Exception) -> str:
    """What a contender that broke gives as its reason."""
    return " ".join(f"{type(failure).__name__}: {failure}".split())[:500]
