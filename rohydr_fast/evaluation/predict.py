"""Predictions of a model for a whole split under a missing pattern."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..data.conversations import conversation_batches
from ..data.dataset import Batch, Dataset, Split, collate
from ..data.missing import MissingSpec, missing_table, realised_rate
from ..distributed import team
from ..models.recovery import Recovered
from ..models.rohydr import RoHyDR
from ..ops.philox import derive_seed

EVALUATION = 1 << 20
"""First key of the seeds used in evaluation, out of reach of the epoch numbers that training uses."""

EVALUATION_EPOCH = 0
"""The epoch number of the missing patterns of evaluation: they are the same after every epoch of training."""


@dataclass(frozen=True)
class Predictions:
    """Sentiment for each clip: the mean over the recoveries drawn, and their standard deviation."""

    mean: np.ndarray  # (N,) float32
    std: np.ndarray  # (N,) float32, 0 with one recovery
    missing: np.ndarray  # (N, 3) bool
    rate: float  # realised missing rate
    draws: np.ndarray  # (N, K) float32


def evaluation_missing(
    spec: MissingSpec, split: Split, modalities: tuple[str, ...], *, seed: int, batch_size: int = 32
) -> np.ndarray:
    """The (N, 3) missing indicator of a split in evaluation; `batch_size` matters to batch-table only."""
    rows = np.arange(len(split))
    return missing_table(
        spec,
        split.present(),
        split.sample_ids,
        seed=seed,
        epoch=EVALUATION_EPOCH,
        batches=[rows[i : i + batch_size] for i in rows[::batch_size]],
        modalities=modalities,
    )


def evaluate_split(
    model: RoHyDR,
    dataset: Dataset,
    split: Split,
    spec: MissingSpec,
    *,
    seed: int,
    samples: int = 1,
    batch_size: int = 32,
) -> Predictions:
    """Predict `split` of `dataset` with modalities missing as `spec` says, a function of (seed, sample id).

    Args:
        samples: recoveries drawn and averaged for each clip.
        batch_size: clips that share a pattern under the protocol batch-table; no other result depends on it.
    """
    missing = evaluation_missing(spec, split, model.config.modalities, seed=seed, batch_size=batch_size)
    return predict(model, dataset, split, missing, seed=seed, samples=samples)


def inputs(batch: Batch, missing: torch.Tensor, device: torch.device | str) -> dict:
    """The arguments of `RoHyDR.forward` for a batch but its seed; `missing` is (B, 3) bool."""
    return {
        "x": {m: x.to(device) for m, x in batch.x.items()},
        "lengths": {m: lengths.to(device) for m, lengths in batch.lengths.items()},
        "missing": missing.to(device),
        "sample_ids": batch.sample_id,
        "conversation": None if batch.conversation is None else batch.conversation.to(device),
    }


def batches(model: RoHyDR, split: Split, size: int) -> list[np.ndarray]:
    """This process's part of the batches of `split`: of `size`, or of whole conversations for who reads neighbours."""
    order = np.arange(len(split))
    if model.recovery.needs_conversations:
        whole = conversation_batches(split.conversation, order, size)
    else:
        whole = [order[start : start + size] for start in range(0, len(split), size)]
    return whole[team().rank :: team().size]


def draw(model: RoHyDR, given: dict, *, seed: int, samples: int) -> Iterator[tuple[dict[str, Recovered], torch.Tensor]]:
    """What was recovered and the predictions (B,), for each of `samples` draws, or once where nothing is drawn.

    Args:
        model: in evaluation mode.
        given: see `inputs`.
    """
    sequences = model.extract(given["x"], given["lengths"], ~given["missing"])
    conditions = model.conditions(sequences, given["missing"], given["conversation"])
    for k in range(samples if model.recovery.draws and conditions else 1):
        recovered = model.recovered(conditions, given["sample_ids"], seed=derive_seed(seed, EVALUATION, k))
        yield recovered, model.sentiment(sequences, recovered)


@torch.no_grad()
def predict(
    model: RoHyDR,
    dataset: Dataset,
    split: Split,
    missing: np.ndarray,
    *,
    seed: int,
    samples: int = 1,
    batch_size: int = 64,
) -> Predictions:
    """Predict every clip of `split`, drawing `samples` recoveries of what `missing` (N, 3) takes away.

    The noise is a function of (seed, draw, sample id), so neither batch size nor order change a recovery.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    draws = np.zeros((len(split), samples), np.float64)
    for rows in batches(model, split, batch_size):
        batch = collate(split, rows, model.config.modalities, dataset.nonfinite_zeroed)
        given = inputs(batch, torch.from_numpy(missing[rows]), device)
        drawn = [prediction.cpu().numpy() for _, prediction in draw(model, given, seed=seed, samples=samples)]
        draws[rows] = np.stack(drawn, 1)  # one draw stands for all
    model.train(training)
    draws = team().sum(torch.from_numpy(draws)).numpy()  # every process has predicted its batches
    rate = realised_rate(missing, split.present(), model.config.modalities)
    mean, deviation = draws.mean(1).astype(np.float32), draws.std(1).astype(np.float32)
    return Predictions(mean, deviation, missing, rate, draws.astype(np.float32))
