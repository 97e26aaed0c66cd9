"""Clips with up to three modalities: splits, data sets, and the batches made from them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..modalities import MODALITIES
from .conversations import conversations
from .mapping import release
from .scan import STD_FLOOR, statistics

if TYPE_CHECKING:  # reading and describing data needs no torch
    import torch


@dataclass(frozen=True)
class Split:
    """One of train, valid, test: N clips.

    `features[m]` is (N, T_m, D_m) float16, float32 or float64 as in the file, possibly a view of a mapped file; the
    real tokens of clip i are the `lengths[m][i]` rows from `starts[m][i]` on, and length 0 means that it lacks m.
    """

    name: str
    features: dict[str, np.ndarray]
    starts: dict[str, np.ndarray]  # m -> (N,) int64
    lengths: dict[str, np.ndarray]  # m -> (N,) int64
    labels: np.ndarray  # (N,) float32 in [-3, 3]
    ids: list[str]
    sample_ids: np.ndarray  # (N,) int64 below 2**48

    def present(self) -> np.ndarray:
        """(N, 3) bool, in the order of `MODALITIES`: the clip has this modality."""
        return np.stack([self.lengths[m] > 0 for m in MODALITIES], axis=1)

    @cached_property
    def conversation(self) -> np.ndarray | None:
        """(N, 2) int64, the conversation and the place in it of each clip, or None; see `data.conversations`."""
        return conversations(self.ids)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Three splits, where they come from, and what people should know about them."""

    name: str
    source: str  # the file's path, or "synthetic"
    sha256: str  # of the file; of the generating parameters for synthetic data
    train: Split
    valid: Split
    test: Split
    notes: tuple[str, ...] = ()
    nonfinite_zeroed: bool = False  # True: NaN and infinities become 0 when a batch is built
    known_best: Any = None  # synthetic data only: .metrics(split_name, available)

    def dims(self) -> dict[str, int]:
        """Modality -> D, the number of channels."""
        return {m: int(self.train.features[m].shape[2]) for m in MODALITIES}

    def modalities(self) -> tuple[str, ...]:
        """The modalities that at least one training clip has."""
        return tuple(m for m in MODALITIES if (self.train.lengths[m] > 0).any())

    def typical_lengths(self) -> dict[str, int]:
        """Modality -> median real length over the training clips that have it; 1 where none has."""
        result = {}
        for m in MODALITIES:
            real = self.train.lengths[m][self.train.lengths[m] > 0]
            result[m] = max(1, int(np.median(real))) if len(real) else 1
        return result

    def aligned_groups(self) -> tuple[tuple[str, ...], ...]:
        """Groups of modalities whose lengths agree in every training clip that has both; such clips must exist.

        Every modality is in exactly one group; one that no training clip has is alone.
        """
        groups: list[tuple[str, ...]] = []
        for m in MODALITIES:
            for place, group in enumerate(groups):
                if all(_lengths_agree(self.train, m, other) for other in group):
                    groups[place] = (*group, m)
                    break
            else:
                groups.append((m,))
        return tuple(groups)

    def feature_statistics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Modality -> mean (D,) and standard deviation (D,), float32, over the real training tokens.

        The deviation of constant channels (below 1e-6) is given as 1. One pass over the file, in chunks.
        """
        result = {}
        for m in MODALITIES:
            train = self.train
            found = statistics(train.features[m], train.starts[m], train.lengths[m], self.nonfinite_zeroed)
            std = np.where(found.std < STD_FLOOR, 1.0, found.std)
            result[m] = (found.mean.astype(np.float32), std.astype(np.float32))
        return result


@dataclass
class Batch:
    """B clips as tensors: real tokens first, padded with zeros to the longest of the batch."""

    x: "dict[str, torch.Tensor]"  # m -> (B, T, D) float32, T >= 1
    lengths: "dict[str, torch.Tensor]"  # m -> (B,) int64
    label: "torch.Tensor"  # (B,) float32
    sample_id: "torch.Tensor"  # (B,) int64
    index: "torch.Tensor"  # (B,) int64, row in the split
    present: "torch.Tensor" = field(repr=False)  # (B, 3) bool
    conversation: "torch.Tensor | None" = None  # (B, 2) int64, see `Split.conversation`


def collate(
    split: Split, indices: Sequence[int] | np.ndarray, modalities: Sequence[str], zero_nonfinite: bool = False
) -> Batch:
    """Build the batch of rows `indices` with the features of `modalities`.

    Only the real rows of these clips are read. `zero_nonfinite` replaces NaN and infinities by 0; pass
    `Dataset.nonfinite_zeroed`.

    Raises:
        IndexError: a row that the split does not have.
    """
    import torch

    index = np.asarray(indices, np.int64).reshape(-1)
    if len(index) and not (0 <= index.min() and index.max() < len(split)):
        raise IndexError(f"collate: indices must lie in 0..{len(split) - 1}, got {index.min()}..{index.max()}.")
    x, lengths = {}, {}
    for m in modalities:
        length = split.lengths[m][index]
        block = _gather(split.features[m], index, split.starts[m][index], length)
        if zero_nonfinite:
            np.nan_to_num(block, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        x[m], lengths[m] = torch.from_numpy(block), torch.from_numpy(length)
    return Batch(
        x=x,
        lengths=lengths,
        label=torch.from_numpy(split.labels[index].astype(np.float32)),
        sample_id=torch.from_numpy(split.sample_ids[index]),
        index=torch.from_numpy(index.copy()),
        present=torch.from_numpy(split.present()[index]),
        conversation=None if split.conversation is None else torch.from_numpy(split.conversation[index]),
    )


def stable_sample_id(clip_id: str) -> int:
    """A clip's number below 2**48, from its id only: 48 bits of BLAKE2b."""
    digest = hashlib.blake2b(clip_id.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "little")


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch's n clips, (n,) int64: a function of n, seed and epoch only."""
    return np.random.Generator(np.random.PCG64([seed % 2**64, epoch])).permutation(n)


def _gather(features: np.ndarray, index: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    steps = max(1, int(lengths.max(initial=0)))
    block = np.zeros((len(index), steps, features.shape[2]), np.float32)
    with np.errstate(over="ignore"):  # float64 beyond float32's range: counted as infinite when the file was checked
        for place, (row, start, length) in enumerate(zip(index, starts, lengths, strict=True)):
            block[place, :length] = features[row, start : start + length]
            release(features, row, row + 1)
    return block


def _lengths_agree(split: Split, one: str, other: str) -> bool:
    a, b = split.lengths[one], split.lengths[other]
    both = (a > 0) & (b > 0)
    return bool(both.any() and (a[both] == b[both]).all())
