"""Recovery by deterministic regression: the simple rival of drawing a recovery."""

import torch
from torch import Tensor, nn

from ... import losses
from ...config import ModelConfig
from ..normalise import ChannelNorm
from ..sequences import Sequence, token_mask, zero_padding
from .base import Condition, Sequences, Supervision, shared_tokens
from .conditioned import ConditionedRecovery, make_denoiser


class RegressionRecovery(ConditionedRecovery):
    """regress: E[x_m | available] by RoHyDR's denoiser network, run once, followed by its UR.

    The network reads zeros where a chain would have x_t, always at step N, so that it knows positions and condition
    and nothing else, and learns by the squared error in normalised units. No noise; its half for sigma is not used.
    """

    term = "L_regress"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.denoiser = nn.ModuleDict({m: make_denoiser(config) for m in config.modalities})
        self.norm = nn.ModuleDict({m: ChannelNorm(config.channels) for m in config.modalities})
        self.step = config.train_steps

    def observe(self, sequences: Sequences, sample_ids: Tensor) -> None:
        """Let the channel statistics take in the ground truth of a batch."""
        for m, norm in self.norm.items():
            norm.update(sequences[m].x.detach(), sequences[m].mask())

    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """E[x_m | available] (R, T, C); gradients run through it."""
        return {m: self._expected(m, condition) for m, condition in conditions.items()}

    def loss(self, given: Supervision) -> Tensor:
        """The squared error in normalised units, over what is missing and has ground truth."""
        total = super().loss(given)
        for m, _, truth, recovered in given.targets():
            guess, x_m, mask = shared_tokens(recovered.generated, truth)
            total = total + losses.eq4_ur(self.norm[m](guess), self.norm[m](x_m), mask)
        return total

    def _expected(self, m: str, condition: Condition) -> Sequence:
        tokens, key_mask = condition.encoded
        mask = token_mask(condition.lengths, int(condition.lengths.max()))
        empty = tokens.new_zeros(*mask.shape, self.denoiser[m].channels)
        t = torch.full_like(condition.lengths, self.step)
        expected, _ = self.denoiser[m](empty, t, tokens, mask, key_mask)
        return Sequence(zero_padding(self.norm[m].inverse(expected), mask), condition.lengths)
