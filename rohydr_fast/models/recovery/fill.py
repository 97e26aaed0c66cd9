"""Recovery without a model of the missing modality: a constant in its place."""

from torch import Tensor, nn

from ...config import ModelConfig
from ..normalise import ChannelNorm
from ..sequences import Sequence, token_mask, zero_padding
from .base import Condition, Recovery, Sequences, zeros_for


class ZeroFill(Recovery):
    """zero: zeros in place of a missing representation."""

    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """Zeros (R, T, C)."""
        return {m: zeros_for(condition) for m, condition in conditions.items()}


class MeanFill(Recovery):
    """mean: the training mean of each channel of the representation, at every token.

    The mean runs along with training, since the extractor learns.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.norm = nn.ModuleDict({m: ChannelNorm(config.channels) for m in config.modalities})

    def observe(self, sequences: Sequences, sample_ids: Tensor) -> None:
        """Let the running means take in the ground truth of a batch."""
        for m, sequence in sequences.items():
            self.norm[m].update(sequence.x.detach(), sequence.mask())

    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """The mean (R, T, C)."""
        filled = {}
        for m, condition in conditions.items():
            zeros = zeros_for(condition)
            x = zeros.x + self.norm[m].mean
            filled[m] = Sequence(zero_padding(x, token_mask(zeros.lengths, x.shape[1])), zeros.lengths)
        return filled
