"""Finished runs, read and checked: each is complete, or left out with a reason."""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, FileAccessError, RohydrError, UsageError
from ..evaluation.metrics import metrics
from ..training.run_directory import CONFIG, LOCK, RunDirectory, file_name, read_document
from .predictions import ClipPredictions, Reader
from .settings import Settings

COMPARED = (
    "Has0_acc_2",
    "Has0_F1_score",
    "Non0_acc_2",
    "Non0_F1_score",
    "Mult_acc_5",
    "Mult_acc_7",
    "MAE",
    "Corr",
    "n",
)
"""Metrics that a stored row must share with what its predictions give."""

BEYOND = ("recovery", "uncertainty")
"""What a row of an evaluation may say beyond metrics."""

OF_A_RUN = frozenset((CONFIG, LOCK, "env.json", "metrics.jsonl", "metrics.json"))
"""Files by which a run directory is known: a folder with two of them is one, whatever it lacks."""


@dataclass(frozen=True)
class LeftOut:
    """A run, or one evaluation of a run, that the report does not use."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} is left out: {self.reason}"


@dataclass(frozen=True)
class Row:
    """One missing pattern under which a run was evaluated."""

    name: str  # of the pattern: "exact 0.3", "{a,t}"
    rate: float | None  # realised missing rate; None where it was not stored
    metrics: dict
    predictions: ClipPredictions
    recovery: dict | None = None  # modality -> {"relative_mse", "cosine"}
    uncertainty: dict | None = None  # of "draws" and "conformal" {"nominal", "coverage", "mean_width"}


@dataclass(frozen=True)
class Evaluation:
    """The rows of one protocol, each clip's recovery drawn `samples` times."""

    protocol: str
    samples: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    seed: int
    settings: Settings
    environment: dict
    sha256: str
    source: str  # of the data
    modalities: tuple[str, ...] | None  # of the model; None when its checkpoint is gone
    result: dict  # metrics.json
    own: Row  # evaluated as it was trained
    epochs: tuple[dict, ...]  # rows of metrics.jsonl, one for each epoch
    evaluations: tuple[Evaluation, ...]
    speeds: tuple[float, ...] = ()  # clips a second, of each process that trained it to an end


@dataclass(frozen=True)
class Collection:
    """What a report is made from."""

    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]


def collect(paths: Sequence[Path], *, split: str = "test", sha256: str | None = None) -> Collection:
    """Read every run in `paths` (run directories, or folders that hold some at any depth).

    A run that is unfinished or unreadable is left out, and so is one made on other data than the majority, or with
    another preset, number of epochs or rule of missing modalities than the majority of those that remain.

    Args:
        split: test or valid.
        sha256: beginning of the checksum of the data to report on; default: those of most runs.

    Raises:
        FileAccessError: a path does not exist.
        UsageError: there is no run in any of them.
        DataError: all runs are left out.
    """
    directories, left_out = find(paths)
    if not directories:
        raise UsageError(
            f"report: must be given at least one run, got {', '.join(map(str, paths))} with none inside. "
            "Name run directories, or a folder that holds them."
        )
    runs, reader = [], Reader()
    for directory in directories:
        try:
            run, unused = read_run(directory, split, reader)
        except RohydrError as error:
            left_out.append(LeftOut(directory, str(error)))
        except OSError as error:
            left_out.append(LeftOut(directory, f"{error.filename or directory}: {error.strerror or error}."))
        else:
            runs.append(run)
            left_out += unused
    runs = _keep(runs, left_out, lambda run: run.sha256, "data", sha256)
    for what in ("preset", "epochs", "protocol"):
        runs = _keep(runs, left_out, lambda run, what=what: getattr(run.settings, what), what)
    if not runs:
        reasons = "; ".join(f"{entry.path}: {entry.reason}" for entry in left_out[:3])
        raise DataError(f"report: no run is left to report on, {len(left_out)} left out. {reasons}")
    return Collection(tuple(runs), tuple(left_out))


def find(paths: Sequence[Path]) -> tuple[list[Path], list[LeftOut]]:
    """Run directories in `paths`, each once and in order, and the paths that hold none."""
    found: dict[Path, Path] = {}
    left_out = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileAccessError(f"{path}: must be a run directory or a folder of them, got nothing. Check the path.")
        inside = []
        for folder, folders, files in os.walk(path):
            if len(OF_A_RUN.intersection(files)) > 1:
                inside.append(Path(folder))
                folders.clear()
            folders.sort()
        if not inside:
            left_out.append(LeftOut(path, "there is no run in it. Name a run directory, or a folder that holds some."))
        for directory in inside:
            found.setdefault(directory.resolve(), directory)
    return list(found.values()), left_out


def read_run(path: Path, split: str, reader: Reader) -> tuple[Run, list[LeftOut]]:
    """The finished run at `path`, and those of its evaluations that cannot be used.

    Raises:
        DataError: it is not finished, or a file of it is missing, damaged, or contradicts another.
    """
    directory = RunDirectory.open(path)
    config = directory.read_config()
    settings = Settings.read(config, path / CONFIG)
    if not (path / "metrics.json").exists():
        raise DataError(
            f"training is not finished, there is no metrics.json. Go on: python -m rohydr_fast.train --resume {path}"
        )
    result, environment = read_document(path / "metrics.json"), read_document(path / "env.json")
    data = environment.get("data")
    if not isinstance(data, dict) or not all(isinstance(data.get(key), str) for key in ("source", "sha256")):
        raise DataError(f"{path / 'env.json'} must hold the data's source and sha256. Restore the file.")
    own = _row(directory, reader, split, "", settings.missing, _own_values(path, result, split))
    epochs = tuple(row for row in directory.rows() if row.get("kind") == "epoch")
    kinds = {"epoch": int, "train": dict, "valid": dict}
    if not epochs or not all(isinstance(row.get(key), kind) for row in epochs for key, kind in kinds.items()):
        raise DataError(f"{path / 'metrics.jsonl'} must hold epoch, train and valid of each epoch. Restore the file.")
    evaluations, unused = _evaluations(directory, settings, split, reader)
    run = Run(
        path=path,
        seed=settings.seed,
        settings=settings,
        environment=environment,
        sha256=data["sha256"],
        source=data["source"],
        modalities=_modalities(path, evaluations),
        result=result,
        own=own,
        epochs=epochs,
        evaluations=tuple(evaluations),
        speeds=_speeds(directory),
    )
    return run, unused


def _speeds(directory: RunDirectory) -> tuple[float, ...]:
    found = [row.get("train_samples_per_s") for row in directory.rows("timing.jsonl")]
    return tuple(float(speed) for speed in found if isinstance(speed, int | float) and 0 < speed < math.inf)


def _own_values(path: Path, result: dict, split: str) -> dict:
    values = result.get(split)
    if not isinstance(values, dict):
        raise DataError(f"{path / 'metrics.json'} must hold the metrics of the {split} split. Restore the file.")
    rate = result.get("realised_missing_rate") if split == "test" else None
    return {"realised_missing_rate": rate, **values}


def _evaluations(
    directory: RunDirectory, settings: Settings, split: str, reader: Reader
) -> tuple[list[Evaluation], list[LeftOut]]:
    evaluations, unused = [], []
    for path in sorted((directory.path / "evaluations").glob("*.json")):
        document = read_document(path)
        if document.get("split") != split:
            continue
        rows, samples, protocol = (document.get(key) for key in ("rows", "samples", "protocol"))
        suffix = document.get("suffix")
        texts = isinstance(protocol, str) and isinstance(suffix, str)
        if not (isinstance(rows, dict) and rows and isinstance(samples, int) and texts):
            raise DataError(f"{path} must hold protocol, suffix, samples and rows. Evaluate the run again.")
        own = {key: settings.values.get(key) for key in ("sampler", "steps", "eta")}
        usual_of = {"checkpoint": "best", "seed": settings.seed, **{k: v for k, v in own.items() if k in document}}
        for key, usual in usual_of.items():
            if document.get(key) != usual:
                unused.append(
                    LeftOut(
                        path,
                        f"its {key} is {document.get(key)}, and reports use {usual}. Evaluate the run without that.",
                    )
                )
                break
        else:
            read = [_row(directory, reader, split, protocol, name, row, suffix) for name, row in rows.items()]
            evaluations.append(Evaluation(protocol, samples, tuple(read)))
    return evaluations, unused


def _row(
    directory: RunDirectory, reader: Reader, split: str, protocol: str, name: str, values: dict, suffix: str = ""
) -> Row:
    """A stored row with its predictions, from which its metrics are computed again and compared."""
    stem = f"{protocol}-{name}{suffix}" if protocol else name
    path = directory.path / "predictions" / f"{file_name(split)}-{file_name(stem)}.npz"
    predictions = reader.read(path)
    computed = metrics(predictions.prediction, predictions.labels)
    where = f"evaluation {protocol}" if protocol else "metrics.json"
    if not isinstance(values, dict):
        raise DataError(f"{where} must hold the metrics of {name}, got {values!r}. Evaluate the run again.")
    for key in COMPARED:
        stored = values.get(key)
        if not _equal(stored, computed[key]):
            raise DataError(
                f"{where} says {key} {stored!r} for {name}, and {path.name} gives {computed[key]!r}. "
                "Evaluate the run again."
            )
    rate = values.get("realised_missing_rate")
    recovery, uncertainty = (found if isinstance(found := values.get(key), dict) else None for key in BEYOND)
    rate = float(rate) if isinstance(rate, int | float) and math.isfinite(rate) else None
    return Row(name, rate, computed, predictions, recovery, uncertainty)


def _equal(stored: object, computed: float | int | bool | None) -> bool:
    if stored is None or computed is None:
        return stored is computed
    return isinstance(stored, int | float) and math.isclose(stored, computed, rel_tol=1e-9, abs_tol=1e-9)


def _modalities(path: Path, evaluations: list[Evaluation]) -> tuple[str, ...] | None:
    """From the checkpoint, or from the sets of an evaluation under every set; None without both."""
    state = path / "checkpoints" / "best" / "state.json"
    if state.exists():
        model = read_document(state).get("model")
        if isinstance(model, dict) and isinstance(model.get("modalities"), list):
            return tuple(map(str, model["modalities"]))
    sets = [row.name for evaluation in evaluations if evaluation.protocol == "fixed" for row in evaluation.rows]
    return tuple(max(sets, key=len).strip("{}").split(",")) if sets else None


def _keep(
    runs: list[Run], left_out: list[LeftOut], key: Callable[[Run], object], what: str, wanted: str | None = None
) -> list[Run]:
    """The runs whose `key` is that of most (of the first among equals), or begins with `wanted`; None fits to all."""
    counts = Counter(key(run) for run in runs if key(run) is not None)
    if not counts:
        return runs
    chosen = wanted or max(counts, key=counts.get)
    kept = []
    for run in runs:
        value = key(run)
        if value is None or value == chosen or (wanted and str(value).startswith(wanted)):
            kept.append(run)
        elif what == "data":
            asked = f"the report is of {str(chosen)[:12]}" + (
                "" if wanted else f" ({counts[chosen]} of {len(runs)} runs)"
            )
            left_out.append(
                LeftOut(run.path, f"its data have the SHA-256 {str(value)[:12]}, and {asked}. See --data-sha256.")
            )
        else:
            left_out.append(
                LeftOut(
                    run.path,
                    f"its {what} is {value}, and that of most runs on these data {chosen} ({counts[chosen]} of "
                    f"{len(runs)}). Report it by itself.",
                )
            )
    return kept
