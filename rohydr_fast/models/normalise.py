"""Normalised units: what a generative model of a representation works in."""

import torch
from torch import Tensor, nn


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
        tokens = x[mask]
        if len(tokens) < 2:
            return
        weight = 1.0 if self.batches == 0 else self.momentum
        # New tensors: a graph that has used the old ones may still need them for its way back.
        self.mean = torch.lerp(self.mean, tokens.mean(0), weight)
        self.std = torch.lerp(self.std, tokens.std(0).clamp(min=1e-3), weight)
        self.batches = self.batches + 1

    def forward(self, x: Tensor) -> Tensor:
        """To normalised units, (B, T, C)."""
        return (x - self.mean) / self.std

    def inverse(self, x: Tensor) -> Tensor:
        """Back to the units of the representation, (B, T, C)."""
        return x * self.std + self.mean
