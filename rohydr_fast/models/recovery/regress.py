"""Recovery by deterministic regression: the simple rival of drawing a recovery."""

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from ..sequences import Sequence, token_mask, zero_padding
from .base import Condition, Sequences
from .conditioned import ConditionedRecovery, make_denoiser
from .normalised import PointRecovery


class RegressionRecovery(PointRecovery, ConditionedRecovery):
    """regress: E[x_m | available] by RoHyDR's denoiser network, run once, followed by its UR.

    The network reads zeros where a chain would have x_t, always at step N, so that it knows positions and condition
    and nothing else, and learns by the squared error in normalised units. No noise; its half for sigma is not used.
    """

    term = "L_regress"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.denoiser = nn.ModuleDict({m: make_denoiser(config) for m in config.modalities})
        self.step = config.train_steps

    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """E[x_m | available] (R, T, C); gradients run through it."""
        return {m: self._expected(m, condition) for m, condition in conditions.items()}

    def _expected(self, m: str, condition: Condition) -> Sequence:
        tokens, key_mask = condition.encoded
        mask = token_mask(condition.lengths, int(condition.lengths.max()))
        empty = tokens.new_zeros(*mask.shape, self.denoiser[m].channels)
        t = torch.full_like(condition.lengths, self.step)
        expected, _ = self.denoiser[m](empty, t, tokens, mask, key_mask)
        return Sequence(zero_padding(self.norm[m].inverse(expected), mask), condition.lengths)
