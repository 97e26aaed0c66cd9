"""Recovery by graph completion over a conversation."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import ModelConfig
from .base import Condition, Sequences
from .normalised import PointRecovery
from .utterance import Unroll, utterance

WINDOW = 5
"""Clips before and after that a clip hears in one layer."""

LAYERS = 2


class Completed(NamedTuple):
    """What the graph makes of the clips that miss a modality."""

    vectors: Tensor  # (R, M C): of all modalities, in normalised units


class RelationalLayer(nn.Module):
    """h + GELU(W_0 h_i + the mean of W_past h_j + the mean of W_future h_j), over neighbours of each kind."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.own, self.past, self.future = nn.Linear(width, width), *(nn.Linear(width, width, False) for _ in "pf")

    def forward(self, h: Tensor, past: Tensor, future: Tensor) -> Tensor:
        """`h` (B, W); `past` and `future` (B, B), rows of weights that sum to 1, or to 0 without a neighbour."""
        normal = self.norm(h)
        return h + F.gelu(self.own(normal) + past @ self.past(normal) + future @ self.future(normal))


class GraphRecovery(PointRecovery):
    """gcnet-style: the clips of a conversation are nodes of a graph, and messages between neighbours complete what a
    clip misses (the idea of GCNet).

    Kept: the order of the conversation, a window, relations by direction, completion of all modalities from the graph.
    Left out: speakers (the ids name none), the second graph over speakers, the recurrent layers around both. This is
    not GCNet's program. A clip on its own is completed from itself.
    """

    term = "L_graph"
    needs_conversations = True

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.modalities, self.channels = config.modalities, config.channels
        features = len(config.modalities) * (config.channels + 1)
        self.enter = nn.Linear(features, 2 * config.width)
        self.layers = nn.ModuleList(RelationalLayer(2 * config.width) for _ in range(LAYERS))
        self.leave = nn.Linear(2 * config.width, len(config.modalities) * config.channels)
        self.unroll = nn.ModuleDict({m: Unroll(config.channels, config.width) for m in config.modalities})

    def survey(self, sequences: Sequences, missing: dict[str, Tensor], conversation: Tensor | None) -> Tensor:
        """The completed vectors (B, M C) of every clip of the batch."""
        parts = []
        for m in self.modalities:
            has = ~missing[m] & (sequences[m].lengths > 0)
            vector = self.norm[m](utterance(sequences[m]))
            parts += [torch.where(has[:, None], vector, 0), has[:, None].to(vector)]
        h = self.enter(torch.cat(parts, 1))
        past, future = neighbours(conversation, h.shape[0], h)
        for layer in self.layers:
            h = layer(h, past, future)
        return self.leave(h)

    def encode(self, rows: Tensor, others: Sequences, available: dict[str, Tensor], surveyed: Tensor) -> Completed:
        """The completed vectors of the samples that miss a modality."""
        return Completed(surveyed[rows])

    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """The completed vector of each missing modality, unrolled to (R, T, C); gradients run through it."""
        found = {}
        for m, condition in conditions.items():
            place = self.modalities.index(m) * self.channels
            vector = condition.encoded.vectors[:, place : place + self.channels]
            found[m] = self.unroll[m](self.norm[m].inverse(vector), condition.lengths, condition.tokens)
        return found


def neighbours(conversation: Tensor | None, clips: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The means over up to `WINDOW` places before and after each clip, as two (B, B) matrices of weights.

    Args:
        conversation: (B, 2) int64; None: every clip is alone.
    """
    if conversation is None:
        return like.new_zeros(clips, clips), like.new_zeros(clips, clips)
    group, place = conversation.unbind(1)
    together = group[:, None] == group
    ahead = place - place[:, None]  # (B, B): of the column, seen from the row
    weights = []
    for distance in (-ahead, ahead):
        near = (together & (distance > 0) & (distance <= WINDOW)).to(like)
        weights.append(near / near.sum(1, keepdim=True).clamp(min=1))
    return weights[0], weights[1]
