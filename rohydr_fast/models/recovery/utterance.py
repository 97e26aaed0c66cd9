"""One vector for each clip and modality, and the way from such a vector back to a sequence."""

import torch
from torch import Tensor, nn

from ..sequences import Sequence, positions, token_mask, zero_padding


def utterance(sequence: Sequence) -> Tensor:
    """The mean over real tokens, (B, C); zeros where a sample has none."""
    total = zero_padding(sequence.x, sequence.mask()).sum(1)
    return total / sequence.lengths.clamp(min=1)[:, None]


class Unroll(nn.Module):
    """A vector (R, C) to a sequence (R, T, C): the vector at every token, and a correction that knows the position.

    It starts as the vector alone.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.enter, self.leave = nn.Linear(channels, width), nn.Linear(width, channels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, vector: Tensor, lengths: Tensor, tokens: int | None = None) -> Sequence:
        """`lengths` (R,) tokens; T is `tokens`, by default that of the longest."""
        mask = token_mask(lengths, tokens)
        hidden = self.enter(vector)[:, None] + positions(mask.shape[1], self.enter.out_features, vector)
        x = vector[:, None] + self.leave(torch.nn.functional.gelu(hidden))
        return Sequence(zero_padding(x, mask), lengths)
