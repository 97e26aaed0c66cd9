"""Recovery by imagination: a cascade of residual autoencoders with a cycle."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ... import losses
from ...config import ModelConfig
from .base import Condition, Sequences, Supervision
from .normalised import PointRecovery
from .utterance import Unroll, utterance

AUTOENCODERS = 3
"""In a cascade; MMIN has five of a larger size."""


class Imagined(NamedTuple):
    """Utterance vectors of all modalities side by side, in normalised units."""

    given: Tensor  # (R, M C): zeros where a modality is missing
    known: Tensor  # (R, M C) bool: what of it is known
    vectors: Tensor  # (R, M C): the imagined ones


class Cascade(nn.Module):
    """Residual autoencoders one after another: each reads the sum of the input and of all outputs before it."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.autoencoders = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features, width),
                nn.GELU(),
                nn.Linear(width, max(1, width // 2)),
                nn.GELU(),
                nn.Linear(max(1, width // 2), width),
                nn.GELU(),
                nn.Linear(width, features),
            )
            for _ in range(AUTOENCODERS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(R, F) to (R, F): the last output."""
        total = x
        for autoencoder in self.autoencoders:
            out = autoencoder(total)
            total = total + out
        return out


class ImaginationRecovery(PointRecovery):
    """mmin-style: a cascaded residual autoencoder imagines the missing modalities from the others, and a second one
    leads back (the idea of MMIN).

    Kept: utterance vectors with zeros for what is missing, the cascade, the loss of the imagined and of the cycle.
    Left out: encoders trained before and frozen, the common classifier on the cascade's inner layers (the fusion of
    this package reads the imagined vector as a sequence). This is not MMIN's program.
    """

    term = "L_imagination"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.modalities, self.channels = config.modalities, config.channels
        features = len(config.modalities) * config.channels
        self.forth, self.back = (Cascade(features, 2 * config.width) for _ in range(2))
        self.unroll = nn.ModuleDict({m: Unroll(config.channels, config.width) for m in config.modalities})

    def encode(self, rows: Tensor, others: Sequences, available: dict[str, Tensor], surveyed) -> Imagined:
        """What is given of the utterance vectors, and what the cascade imagines."""
        like = next(iter(others.values())).x
        empty = like.new_zeros(like.shape[0], self.channels)
        parts, known = [], []
        for m in self.modalities:
            has = available[m] & (others[m].lengths > 0) if m in others else empty[:, 0].bool()
            vector = self.norm[m](utterance(others[m])) if m in others else empty
            parts.append(torch.where(has[:, None], vector, 0))
            known.append(has[:, None].expand(-1, self.channels))
        given = torch.cat(parts, 1)
        return Imagined(given, torch.cat(known, 1), self.forth(given))

    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """The imagined vector of each missing modality, unrolled to (R, T, C); gradients run through it."""
        found = {}
        for m, condition in conditions.items():
            vector = self._vector(m, condition.encoded)
            found[m] = self.unroll[m](self.norm[m].inverse(vector), condition.lengths, condition.tokens)
        return found

    def loss(self, given: Supervision) -> Tensor:
        """Squared errors, in normalised units: of the imagined vector, of its sequence, and of the way back."""
        total = super().loss(given)
        for target in given.targets():
            m, condition, truth = target[:3]
            encoded = condition.encoded
            vector = self._vector(m, encoded)
            truth_vector = self.norm[m](utterance(truth).detach())
            everyone = torch.ones(len(vector), dtype=torch.bool, device=vector.device)
            total = total + losses.eq4_ur(vector, truth_vector, everyone)
            total = total + losses.eq4_ur(self.back(encoded.vectors), encoded.given, encoded.known)
        return total

    def _vector(self, m: str, encoded: Imagined) -> Tensor:
        place = self.modalities.index(m) * self.channels
        return encoded.vectors[:, place : place + self.channels]
