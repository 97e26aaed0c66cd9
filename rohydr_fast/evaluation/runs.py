"""Trained runs under a protocol: rows of metrics with their uncertainty, kept in the run's directory."""

from dataclasses import dataclass
from pathlib import Path

from ..data.dataset import Dataset
from ..errors import DataError, UsageError
from ..training.experiment import config_from, notes, open_run, read_dataset, save_predictions
from ..training.trainer import load_model
from .metrics import metrics
from .predict import evaluate_split
from .protocols import protocol_rows
from .recovery import channel_means, recovery_quality
from .tables import Columns, metrics_table
from .uncertainty import calibration, conformal_radius

COLUMNS: Columns = (
    ("realised_missing_rate", "rate"),
    ("Non0_acc_2", "ACC2"),
    ("Non0_F1_score", "F1"),
    ("Mult_acc_7", "ACC7"),
    ("MAE", "MAE"),
    ("Corr", "Corr"),
    ("covered_80", "in 80 %"),
    ("n", "n"),
)


@dataclass(frozen=True)
class Evaluation:
    """What is asked of a run; `python -m rohydr_fast.evaluate --help` explains each."""

    protocol: str = "rates"
    missing_rate: str | None = None
    samples: int = 1
    split: str = "test"
    checkpoint: str = "best"
    seed: int | None = None  # of patterns and noise; the run's by default
    sampler: str | None = None
    steps: int | None = None
    eta: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (("split", ("test", "valid")), ("checkpoint", ("best", "last"))):
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(f"--{name}: must be {' or '.join(choices)}, got {value!r}. Choose one of them.")
        if self.samples < 1:
            raise UsageError(f"--samples: must be 1 or more, got {self.samples}. Use for example --samples 8.")

    @property
    def name(self) -> str:
        """Of its files in the run directory: two different questions have different names."""
        rate = "" if self.missing_rate is None else f"-{self.missing_rate}"
        return f"{self.protocol}{rate}-{self.split}{self.suffix}"

    @property
    def suffix(self) -> str:
        """What differs from the plainest question, for names of files."""
        given = {"sampler": self.sampler, "steps": self.steps, "eta": self.eta, "seed": self.seed}
        given["samples"] = self.samples if self.samples > 1 else None
        parts = [f"-{name}{value}" for name, value in given.items() if value is not None]
        return "".join(parts) + ("-last" if self.checkpoint == "last" else "")


def evaluate_run(
    directory: Path, asked: Evaluation, *, data: str | None = None, dataset: Dataset | None = None
) -> tuple[dict, tuple[str, ...]]:
    """Evaluate one run and keep the result in its directory as ``evaluations/{asked.name}.{json,md}``.

    Args:
        data: another place of the run's data file.
        dataset: that file, already read.

    Returns:
        The document, and notes on the data.

    Raises:
        UsageError: an impossible protocol, sampler or number of steps.
        DataError: a damaged run, or another data file than it was trained on.
    """
    run = open_run(directory)
    config = config_from(run.read_config(), run)
    model, state = load_model(run.checkpoint(asked.checkpoint))
    sampler = model.recovery.resample(asked.sampler, asked.steps, asked.eta)
    pairs = protocol_rows(asked.protocol, model.config.modalities, asked.missing_rate)
    dataset = dataset or read_dataset(config, data)
    if dataset.sha256 != state["data_sha256"]:
        raise DataError(
            f"{dataset.source}: must be the file that the run was trained on (SHA-256 {state['data_sha256'][:12]}), "
            f"got {dataset.sha256[:12]}. Name the right file with --data."
        )
    split = getattr(dataset, asked.split)
    seed = config.seed if asked.seed is None else asked.seed
    options = dict(seed=seed, samples=asked.samples, batch_size=config.batch_size)
    rows, means = {}, channel_means(model, dataset, split)
    for name, spec in pairs:
        found = evaluate_split(model, dataset, split, spec, **options)
        valid = found if split is dataset.valid else evaluate_split(model, dataset, dataset.valid, spec, **options)
        uncertainty = calibration(found.draws, split.labels, valid.mean, dataset.valid.labels)
        rows[name] = {
            "realised_missing_rate": found.rate,
            **metrics(found.mean, split.labels),
            "covered_80": uncertainty["conformal"]["coverage"],
            "recovery": recovery_quality(model, dataset, split, found.missing, seed=seed, means=means),
            "uncertainty": uncertainty,
        }
        radius = conformal_radius(valid.mean, dataset.valid.labels)
        save_predictions(run, split, f"{asked.protocol}-{name}{asked.suffix}", found, radius)
    document = {
        "run_dir": str(run.path),
        "protocol": asked.protocol,
        "split": asked.split,
        "checkpoint": asked.checkpoint,
        "samples": asked.samples,
        **sampler,
        "seed": seed,
        "suffix": asked.suffix,  # of its files of predictions
        "rows": rows,
    }
    run.write_evaluation(asked.name, document, metrics_table(rows, COLUMNS))
    return document, tuple(sentence for _, spec in pairs for sentence in notes(dataset, spec))
