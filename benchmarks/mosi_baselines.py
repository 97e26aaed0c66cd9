"""What any model must beat on a data file: majority, ridge regression on mean features, and a plain BiLSTM.

    python benchmarks/mosi_baselines.py FILE [--seeds 1 2 3]

Ridge reads the standardised mean feature of each modality; its strength is chosen on validation. The BiLSTM reads
text alone: Conv1d to 32 channels, a bidirectional LSTM, the mean over real tokens, 25 epochs, best on validation.
"""

import argparse
import statistics

import numpy as np
import torch
from torch import nn

from rohydr_fast.data import Dataset, Split, collate, epoch_order, load
from rohydr_fast.evaluation.metrics import majority_metrics, metrics
from rohydr_fast.evaluation.tables import aggregate, aggregate_table
from rohydr_fast.models.extractor import Extractor
from rohydr_fast.training.stages import seeded


def mean_features(dataset: Dataset, split: Split, modalities: tuple[str, ...]) -> np.ndarray:
    """(N, sum of D) standardised features, averaged over real tokens."""
    batch = collate(split, np.arange(len(split)), modalities, dataset.nonfinite_zeroed)
    statistics_of = dataset.feature_statistics()
    columns = []
    for m in modalities:
        mean, std = statistics_of[m]
        lengths = batch.lengths[m].numpy()[:, None]
        mask = np.arange(batch.x[m].shape[1]) < lengths
        x = (batch.x[m].numpy() - mean) / std * mask[..., None]
        columns.append(x.sum(1) / np.maximum(lengths, 1))
    return np.concatenate(columns, 1).astype(np.float64)


def ridge(dataset: Dataset, modalities: tuple[str, ...]) -> dict:
    """Test metrics of ridge regression."""
    train, valid, test = (mean_features(dataset, s, modalities) for s in (dataset.train, dataset.valid, dataset.test))
    y = dataset.train.labels.astype(np.float64)
    best = None
    for strength in 10.0 ** np.arange(-1, 6):
        weight = np.linalg.solve(train.T @ train + strength * np.eye(train.shape[1]), train.T @ (y - y.mean()))
        found = metrics(valid @ weight + y.mean(), dataset.valid.labels)
        if best is None or found["MAE"] < best[0]:
            best = (found["MAE"], metrics(test @ weight + y.mean(), dataset.test.labels))
    return best[1]


def bilstm(dataset: Dataset, seed: int, epochs: int = 25) -> dict:
    """Test metrics of an extractor and a linear layer on text."""
    with seeded(seed):
        extractor, head = Extractor(dataset.dims()["t"], 32, 0.1), nn.Linear(32, 1)
    extractor.set_statistics(*dataset.feature_statistics()["t"])
    parameters = [*extractor.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3)

    def forward(split: Split, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        batch = collate(split, rows, ("t",), dataset.nonfinite_zeroed)
        sequence = extractor(batch.x["t"], batch.lengths["t"])
        return head(sequence.x.sum(1) / sequence.lengths.clamp(min=1)[:, None])[:, 0], batch.label

    best = None
    for epoch in range(1, epochs + 1):
        extractor.train()
        order = epoch_order(len(dataset.train), seed, epoch)
        with seeded(seed * 1000 + epoch):
            for start in range(0, len(order), 32):
                prediction, label = forward(dataset.train, order[start : start + 32])
                optimizer.zero_grad()
                (prediction - label).pow(2).mean().backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
        extractor.eval()
        with torch.no_grad():
            found = {
                s.name: metrics(forward(s, np.arange(len(s)))[0].numpy(), s.labels)
                for s in (dataset.valid, dataset.test)
            }
        if best is None or found["valid"]["MAE"] < best[0]:
            best = (found["valid"]["MAE"], found["test"])
    return best[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    dataset = load(options.file)
    runs = []
    for seed in options.seeds:
        rows = {"majority": majority_metrics(dataset.train.labels, dataset.test.labels)}
        for modalities in ((m,) for m in dataset.modalities()):
            rows[f"ridge {{{','.join(modalities)}}}"] = ridge(dataset, modalities)
        rows[f"ridge {{{','.join(dataset.modalities())}}}"] = ridge(dataset, dataset.modalities())
        rows["BiLSTM {t}"] = bilstm(dataset, seed)
        runs.append(rows)
    print(aggregate_table(aggregate(runs)))
    print("median BiLSTM MAE:", round(statistics.median(run["BiLSTM {t}"]["MAE"] for run in runs), 4))


if __name__ == "__main__":
    main()
