"""How close recovered representations come to the ground truth."""

import numpy as np
import torch

from ..data.dataset import Dataset, Split, collate
from ..distributed import team
from ..models.rohydr import RoHyDR
from ..models.sequences import token_mask
from ..ops.philox import derive_seed
from .predict import EVALUATION, batches, inputs


@torch.no_grad()
def recovery_quality(
    model: RoHyDR,
    dataset: Dataset,
    split: Split,
    missing: np.ndarray,
    *,
    seed: int,
    means: dict[str, torch.Tensor] | None = None,
    batch_size: int = 64,
) -> dict[str, dict[str, float]]:
    """Compare x_rec with x_m for everything that `missing` (N, 3) takes away and the file has.

    Args:
        means: `channel_means` of the split, where they are known: they do not depend on what is missing.

    Returns:
        modality -> ``relative_mse``, the mean squared error over the variance of x_m (1 is what the mean of x_m
        reaches), and ``cosine`` of the centred representations. Modalities of which nothing is missing are left out.
    """
    training = model.training
    model.eval()
    sums = {m: np.zeros(4) for m in model.config.modalities}
    device = next(model.parameters()).device
    means = means or channel_means(model, dataset, split, batch_size)
    for rows in batches(model, split, batch_size):
        batch = collate(split, rows, model.config.modalities, dataset.nonfinite_zeroed)
        given = inputs(batch, torch.from_numpy(missing[rows]), device)
        sequences = model.extract(given["x"], given["lengths"], batch.present.to(device))
        conditions = model.conditions(sequences, given["missing"], given["conversation"])
        recovered = model.recovered(conditions, batch.sample_id, seed=derive_seed(seed, EVALUATION, 0))
        for m, (missed, x_rec, _) in recovered.items():
            x_m, lengths = sequences[m].x[missed], sequences[m].lengths[missed]
            tokens = min(x_m.shape[1], x_rec.x.shape[1])
            real = token_mask(torch.minimum(lengths, x_rec.lengths), tokens)
            truth, guess = (x[:, :tokens][real].double() - means[m] for x in (x_m, x_rec.x))
            parts = [(guess - truth).pow(2), truth.pow(2), guess * truth, guess.pow(2)]
            sums[m] += np.array([float(part.sum()) for part in parts])
    model.train(training)
    found = team().sum(torch.from_numpy(np.stack(list(sums.values())))).numpy()
    return {
        m: {"relative_mse": float(s[0] / s[1]), "cosine": float(s[2] / np.sqrt(s[1] * s[3]).clip(1e-30))}
        for m, s in zip(sums, found, strict=True)
        if s[1] > 0
    }


@torch.no_grad()
def channel_means(model: RoHyDR, dataset: Dataset, split: Split, batch_size: int = 64) -> dict[str, torch.Tensor]:
    """Mean of x_m over the real tokens of the split, (C,) float64 for each modality."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    totals = {m: torch.zeros(model.config.channels, dtype=torch.float64) for m in model.config.modalities}
    counts = torch.zeros(len(totals), dtype=torch.float64)
    for rows in batches(model, split, batch_size):
        batch = collate(split, rows, model.config.modalities, dataset.nonfinite_zeroed)
        x = {m: value.to(device) for m, value in batch.x.items()}
        lengths = {m: value.to(device) for m, value in batch.lengths.items()}
        for place, (m, sequence) in enumerate(model.extract(x, lengths, batch.present.to(device)).items()):
            tokens = sequence.x[sequence.mask()]
            totals[m] += tokens.double().sum(0).cpu()
            counts[place] += len(tokens)
    model.train(training)
    means = team().sum(torch.stack(list(totals.values()))) / team().sum(counts).clamp(min=1)[:, None]
    return {m: mean.to(device) for m, mean in zip(totals, means, strict=True)}
