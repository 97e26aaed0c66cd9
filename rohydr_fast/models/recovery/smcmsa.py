"""Recovery from similar clips of the training split."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from ..sequences import Sequence, token_mask, zero_padding
from .base import Condition, Recovery, Sequences, zeros_for
from .conditioned import ids_of
from .utterance import utterance

NEIGHBOURS = 8
"""Clips that a completion is averaged over."""

TEMPERATURE = 0.1
"""Of the softmax over their cosine similarities."""


class Bank(NamedTuple):
    """What is remembered of one modality of N training clips."""

    ids: Tensor  # (N,)
    vectors: Tensor  # (N, C)
    has: Tensor  # (N,) bool: the clip has the modality
    centre: Tensor  # (C,) the mean of those


class SimilarSampleRecovery(Recovery):
    """smcmsa-style: a missing modality is completed from the training clips that are most alike in the available ones
    (the idea of SMCMSA).

    Kept: retrieval by similarity, completion by what the similar clips have. Left out: pretrained similarity, the
    generator that edits what was retrieved (UR stands for it). This is not SMCMSA's program.

    The bank holds one utterance vector for each modality of each training clip, (M C + 2) numbers a clip: 0.5 MB for
    CMU-MOSI at C = 32. A clip enters when training first sees it and is refreshed whenever it comes again. No clip
    is completed from itself. No gradient reaches what was retrieved.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        slots, channels = config.train_clips, config.channels
        self.register_buffer("ids", torch.full((slots,), -1, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.modalities = config.modalities
        self.frozen: dict[str, Bank] = {}  # by modality, see `freeze`
        for m in config.modalities:
            self.register_buffer(f"vectors_{m}", torch.zeros(slots, channels))
            self.register_buffer(f"has_{m}", torch.zeros(slots, dtype=torch.bool))

    @torch.no_grad()
    def observe(self, sequences: Sequences, sample_ids: Tensor) -> None:
        """Write a training batch into the bank. More clips than the training split has are not remembered."""
        ids = sample_ids.to(self.ids.device)
        self._admit(ids)
        found = ids[:, None] == self.ids[: int(self.filled)]  # (B, N)
        kept = found.any(1)
        slots = found[kept].int().argmax(1)
        for m, sequence in sequences.items():
            getattr(self, f"vectors_{m}")[slots] = utterance(sequence)[kept]
            getattr(self, f"has_{m}")[slots] = sequence.lengths[kept] > 0

    @torch.no_grad()
    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """The completion at every token, (R, T, C); zeros where no training clip has the modality."""
        found = {}
        for m, condition in conditions.items():
            zeros = zeros_for(condition)
            vector = self._complete(m, condition, ids_of(condition, sample_ids).to(self.ids.device))
            mask = token_mask(zeros.lengths, zeros.x.shape[1])
            found[m] = Sequence(zero_padding(zeros.x + vector[:, None], mask), zeros.lengths)
        return found

    def _complete(self, m: str, condition: Condition, ids: Tensor) -> Tensor:
        """(R, C): the vectors of the most similar clips that have m, weighted by a softmax of their similarity."""
        bank = self._bank(m)
        similarity = bank.vectors.new_zeros(ids.shape[0], len(bank.ids))
        shared = torch.zeros_like(similarity)
        for n, sequence in condition.others.items():
            known = self._bank(n)
            query = nn.functional.normalize(utterance(sequence) - known.centre, dim=1)
            both = condition.available[n][:, None] & known.has
            keys = nn.functional.normalize(known.vectors - known.centre, dim=1)
            similarity = similarity + torch.where(both, query @ keys.T, 0)
            shared = shared + both
        usable = bank.has & (shared > 0) & (ids[:, None] != bank.ids)
        score = torch.where(usable, similarity / shared.clamp(min=1) / TEMPERATURE, -torch.inf)
        score, nearest = score.topk(min(NEIGHBOURS, len(bank.ids)), dim=1)
        weight = torch.softmax(score, 1).nan_to_num(0)  # nobody is usable: zeros
        return (weight[..., None] * bank.vectors[nearest]).sum(1)

    def freeze(self) -> None:
        """Cut the bank to what is in it, and compute its means."""
        self.frozen = {m: self._bank(m) for m in self.modalities}

    def _bank(self, m: str) -> Bank:
        if self.frozen:
            return self.frozen[m]
        filled = int(self.filled)
        vectors, has = getattr(self, f"vectors_{m}")[:filled], getattr(self, f"has_{m}")[:filled]
        centre = vectors[has].mean(0) if has.any() else vectors.new_zeros(vectors.shape[1])
        return Bank(self.ids[:filled], vectors, has, centre)

    def _admit(self, ids: Tensor) -> None:
        """Give every clip of first sight a slot, as far as there are any.

        Slots are in the order of ids, so that the bank is a function of the clips seen and not of the order of batches.
        """
        filled = int(self.filled)
        new = ids[~torch.isin(ids, self.ids[:filled])].unique()[: len(self.ids) - filled]
        if len(new) == 0:
            return
        end = filled + len(new)
        self.ids[filled:end] = new
        order = self.ids[:end].argsort()
        for part in (self.ids, *(getattr(self, f"{kind}_{m}") for m in self.modalities for kind in ("vectors", "has"))):
            part[:end] = part[order]
        self.filled += len(new)
