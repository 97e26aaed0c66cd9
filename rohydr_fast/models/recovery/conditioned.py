"""What the methods share that read the available modalities as the keys and values of cross-attention."""

from typing import NamedTuple

from torch import Tensor

from ...config import ModelConfig
from ..condition import ConditionEncoder
from ..denoiser import Denoiser
from .base import Condition, Recovery, Sequences


class Encoded(NamedTuple):
    """E and its key mask."""

    tokens: Tensor  # (R, S, W)
    key_mask: Tensor  # (R, S) bool


class ConditionedRecovery(Recovery):
    """A method with the condition encoder E of Sec. 2.2.1."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.condition = ConditionEncoder(config.modalities, config.channels, config.width)

    def encode(self, rows: Tensor, others: Sequences, available: dict[str, Tensor], surveyed) -> Encoded:
        """E of the available modalities: keys and values of the cross-attention."""
        return Encoded(*self.condition(others, available))


def make_denoiser(config: ModelConfig) -> Denoiser:
    """The network that every method of this kind uses, so that they differ in what they do with it."""
    return Denoiser(config.channels, config.width, config.blocks, config.heads, config.mlp_ratio)


def ids_of(condition: Condition, sample_ids: Tensor) -> Tensor:
    """(R,) the ids of a condition's samples; they stay on the CPU, where noise is keyed."""
    return sample_ids[condition.rows.to(sample_ids.device)]
