"""Recovery without a model of the missing modality: a constant in its place."""

from torch import Tensor

from ..sequences import Sequence, token_mask, zero_padding
from .base import Condition, Recovery, Sequences, zeros_for
from .normalised import NormalisedRecovery


class ModalityDropout(Recovery):
    """dropout: nothing in place of a missing modality; F does without it."""

    divides = True


class ZeroFill(Recovery):
    """zero: zeros in place of a missing representation."""

    divides = True

    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """Zeros (R, T, C)."""
        return {m: zeros_for(condition) for m, condition in conditions.items()}


class MeanFill(NormalisedRecovery):
    """mean: the training mean of each channel of the representation, at every token.

    The mean runs along with training, since the extractor learns.
    """

    divides = True

    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """The mean (R, T, C)."""
        filled = {}
        for m, condition in conditions.items():
            zeros = zeros_for(condition)
            x = zeros.x + self.norm[m].mean
            filled[m] = Sequence(zero_padding(x, token_mask(zeros.lengths, x.shape[1])), zeros.lengths)
        return filled
