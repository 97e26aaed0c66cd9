"""Normalised units: what a generative model of a representation works in."""

import torch
from torch import Tensor, nn

from ..distributed import team


class ChannelNorm(nn.Module):
    """Running mean and deviation of each channel; no gradient. Diffusion works in normalised units.

    The first batch sets both, later ones move them by `momentum`.
    """

    def __init__(self, channels: int, momentum: float = 0.05):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor) -> None:
        """Take in the real tokens, `mask` (B, T), of a batch (B, T, C). One token alone has no deviation: skipped."""
        mean, std = _statistics(x[mask])
        if mean is None:
            return
        weight = 1.0 if self.batches == 0 else self.momentum
        # New tensors: a graph that has used the old ones may still need them for its way back.
        self.mean = torch.lerp(self.mean, mean, weight)
        self.std = torch.lerp(self.std, std.clamp(min=1e-3), weight)
        self.batches = self.batches + 1

    def forward(self, x: Tensor) -> Tensor:
        """To normalised units, (B, T, C)."""
        return (x - self.mean) / self.std

    def inverse(self, x: Tensor) -> Tensor:
        """Back to the units of the representation, (B, T, C)."""
        return x * self.std + self.mean


def _statistics(tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Mean and deviation (C,) of the tokens (N, C) of all processes; None for fewer than two."""
    if team().size == 1:
        return (None, None) if len(tokens) < 2 else (tokens.mean(0), tokens.std(0))
    count = tokens.new_tensor([len(tokens)], dtype=torch.float64)
    sums = team().sum(torch.cat([tokens.double().sum(0), count]))
    if sums[-1] < 2:
        return None, None
    mean = sums[:-1] / sums[-1]
    squares = team().sum((tokens.double() - mean).pow(2).sum(0))
    return mean.to(tokens.dtype), (squares / (sums[-1] - 1)).sqrt().to(tokens.dtype)
