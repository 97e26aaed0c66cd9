"""What the methods share that work in units of each channel's running mean and deviation."""

from torch import Tensor, nn

from ... import losses
from ...config import ModelConfig
from ..normalise import ChannelNorm
from .base import Recovery, Sequences, Supervision, shared_tokens


class NormalisedRecovery(Recovery):
    """A method with the channel statistics of every modality."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.norm = nn.ModuleDict({m: ChannelNorm(config.channels) for m in config.modalities})

    def observe(self, sequences: Sequences, sample_ids: Tensor) -> None:
        """Let the statistics take in the ground truth of a batch."""
        for m, norm in self.norm.items():
            norm.update(sequences[m].x.detach(), sequences[m].mask())


class PointRecovery(NormalisedRecovery):
    """A method that gives one best guess, and learns by its squared error."""

    def loss(self, given: Supervision) -> Tensor:
        """The squared error in normalised units, over what is missing and has ground truth."""
        total = super().loss(given)
        for target in given.targets():
            guess, x_m, mask = shared_tokens(target.recovered.generated, target.truth)
            norm = self.norm[target.modality]
            total = total + target.mean_recovered(losses.eq4_ur(norm(guess), norm(x_m), mask))
        return total
