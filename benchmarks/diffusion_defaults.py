"""Which form of Eq. 3, and which prediction, recovers best on validation data: the evidence for the defaults.

    python benchmarks/diffusion_defaults.py [--epochs 4] [--seeds 1 2] [--chain-grad none] [--combinations v/kl ...]

Each combination is a full three-stage run on the synthetic data at rate 0.5. The numbers are of the validation split:
the error of x_rec over the variance of x_m for each modality, the cosine, and the prediction's MAE and ACC2. The test
split is not read.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from rohydr_fast.config import TrainConfig
from rohydr_fast.data import load
from rohydr_fast.evaluation.metrics import metrics
from rohydr_fast.evaluation.predict import evaluation_missing, predict
from rohydr_fast.evaluation.recovery import recovery_quality
from rohydr_fast.training.experiment import missing_spec
from rohydr_fast.training.interrupt import StopRequest
from rohydr_fast.training.progress import Progress
from rohydr_fast.training.run_directory import RunDirectory
from rohydr_fast.training.trainer import Trainer

COMBINATIONS = ("eps/nll", "eps/kl", "eps/hybrid", "v/nll", "v/kl", "v/hybrid", "x0/hybrid")


def run(config: TrainConfig, dataset) -> dict[str, float]:
    """Train once; return what the table shows."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(dataset, config, missing_spec(config), RunDirectory.create(Path(folder) / "run", "run"))
        progress = Progress(config.max_epochs(), len(trainer.batches(1)), interval=1e9)
        with progress, StopRequest() as stop:
            trainer.fit(progress, stop)
    split, model = dataset.valid, trainer.model
    missing = evaluation_missing(trainer.spec, split, model.config.modalities, seed=config.seed)
    found = metrics(predict(model, dataset, split, missing, seed=config.seed).mean, split.labels)
    row = {"MAE": found["MAE"], "ACC2": found["Non0_acc_2"]}
    for m, quality in recovery_quality(model, dataset, split, missing, seed=config.seed).items():
        row[f"mse {m}"], row[f"cos {m}"] = quality["relative_mse"], quality["cosine"]
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--chain-grad", default="none")
    parser.add_argument("--combinations", nargs="+", default=list(COMBINATIONS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dataset = load("synthetic")
    for number, combination in enumerate(options.combinations):
        prediction, loss = combination.split("/")
        rows = []
        for seed in options.seeds:
            config = TrainConfig(
                seed=seed, epochs=options.epochs, patience=0, chain_grad=options.chain_grad,
                prediction=prediction, diffusion_loss=loss,
            )  # fmt: skip
            rows.append(run(config, dataset))
        if number == 0:
            print("| prediction / loss | chain gradient | " + " | ".join(rows[0]) + " |")
            print("|---|---|" + "---|" * len(rows[0]))
        cells = [
            f"{statistics.mean(values):.3f} ({min(values):.3f}..{max(values):.3f})"
            for values in ([row[key] for row in rows] for key in rows[0])
        ]
        print(f"| {combination} | {options.chain_grad} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
