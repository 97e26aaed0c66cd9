"""Recovery by deterministic regression: the simple rival of drawing a recovery."""

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from ..sequences import Sequence, token_mask, zero_padding
from .base import Condition, Sequences
from .conditioned import ConditionedRecovery, Encoded, make_denoiser
from .normalised import PointRecovery


class Regressor(nn.Module):
    """E[x_m | available] in normalised units by RoHyDR's denoiser network, run once, always at step N.

    It reads zeros where a chain would have x_t, so that it knows positions and condition and nothing else. Its half
    for sigma is not used.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.denoiser = make_denoiser(config)
        self.step = config.train_steps

    def forward(self, lengths: Tensor, encoded: Encoded, tokens: int | None = None) -> Tensor:
        """(R, T, C); rows after a sample's length (R,) hold numbers without meaning.

        T is `tokens`, by default that of the longest.
        """
        mask = token_mask(lengths, tokens)
        empty = encoded.tokens.new_zeros(*mask.shape, self.denoiser.channels)
        t = torch.full_like(lengths, self.step)
        return self.denoiser(empty, t, encoded.tokens, mask, encoded.key_mask)[0]


class RegressionRecovery(PointRecovery, ConditionedRecovery):
    """regress: E[x_m | available] by RoHyDR's denoiser network, run once, followed by its UR.

    It learns by the squared error in normalised units. There is no noise.
    """

    divides = True
    term = "L_regress"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.regressor = nn.ModuleDict({m: Regressor(config) for m in config.modalities})

    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """E[x_m | available] (R, T, C); gradients run through it."""
        recovered = {}
        for m, condition in conditions.items():
            lengths = condition.lengths
            expected = self.norm[m].inverse(self.regressor[m](lengths, condition.encoded, condition.tokens))
            recovered[m] = Sequence(zero_padding(expected, token_mask(lengths, expected.shape[1])), lengths)
        return recovered
