"""One training run from settings to final table, and its resumption."""

import io
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from ..config import METHOD_TITLES, ModelConfig, TrainConfig
from ..data.dataset import Dataset, Split
from ..data.folds import by_video
from ..data.loading import load
from ..data.missing import MissingSpec, rate_note
from ..distributed import local_device, team
from ..errors import DataError, FileAccessError, MethodUnavailable, UsageError
from ..evaluation.calibrate import calibrate
from ..evaluation.metrics import majority_metrics, metrics
from ..evaluation.predict import Predictions, evaluate_split, evaluation_missing
from ..evaluation.tables import metrics_table
from ..evaluation.uncertainty import interval_of_draws
from ..modalities import MODALITIES, NAMES
from ..models.recovery import METHOD_CLASSES, recovery_class
from ..ops.registry import backend as use_backend
from ..ops.registry import select
from .interrupt import StopRequest
from .progress import Progress
from .run_directory import CONFIG, RunDirectory, Witness
from .trainer import Trainer, load_model
from .watching import NOTHING, Watch, watched


@dataclass(frozen=True)
class Result:
    """What a finished run reports."""

    summary: dict  # the object that --json prints
    rows: dict[str, dict]  # of the final table, by name: metrics on the test split
    table: str  # Markdown
    notes: tuple[str, ...]  # sentences: what was cleaned, capped, or not real


def read_dataset(config: TrainConfig, data: str | None = None) -> Dataset:
    """The data of a run, in its splits; `data` is another place of the file."""
    dataset = load(data or config.data, nonfinite=config.nonfinite)
    return by_video(dataset, config.folds, config.fold) if config.folds else dataset


def missing_spec(config: TrainConfig) -> MissingSpec:
    """How modalities go missing in this run, in training and in validation."""
    return MissingSpec.parse(config.protocol, config.missing_rate, config.available)


def start(config: TrainConfig, out: Path | None, dataset: Dataset | None = None, *, watch: Watch = NOTHING) -> Result:
    """Train with `config` in a new run directory; `dataset` is that of `config`, where it has been read already.

    Raises:
        UsageError, DataError, BackendUnavailable: before anything is written.
        Interrupted: after a signal, with a checkpoint.
    """
    spec = missing_spec(config)
    watch.check()
    _check_runtime(config)
    dataset = dataset or read_dataset(config)
    model_config = config.model_config(dataset)
    _check_method(model_config, dataset)
    for split in (dataset.train, dataset.valid, dataset.test):  # refuse what cannot be before anything is written
        evaluation_missing(spec, split, model_config.modalities, seed=config.seed)
    name = f"{dataset.name}-{config.preset}-{spec.name}-s{config.seed}"
    run = RunDirectory.create(out, name) if team().leads else None
    path = team().tell(run and run.path)
    run = run or Witness(path)
    with run.lock(), StopRequest() as stop:
        run.check_new()
        from ..doctor import environment

        run.write_config(asdict(config))
        run.write_environment({**environment(), "data": {"source": dataset.source, "sha256": dataset.sha256}})
        return _train(Trainer(dataset, config, spec, run), watch, stop)


def resume(path: Path, dataset: Dataset | None = None, *, fall_back: bool = False, watch: Watch = NOTHING) -> Result:
    """Go on with the run at `path`, from its last checkpoint, or from the start when it has none yet; see `start`.

    With `fall_back`, a damaged checkpoint is passed over for the one before it, and a note says so.
    """
    run = open_run(path)
    config = config_from(run.read_config(), run)
    spec = missing_spec(config)
    watch.check()
    _check_runtime(config)
    dataset = dataset or read_dataset(config)
    _check_method(config.model_config(dataset), dataset)
    with run.lock(), StopRequest() as stop:
        trainer = Trainer(dataset, config, spec, run)
        passed_over = trainer.restore(fall_back=fall_back)
        result = _train(trainer, watch, stop)
    return result if passed_over is None else replace(result, notes=(passed_over, *result.notes))


def newest_run(folder: Path) -> Path:
    """The run in `folder`, at any depth, whose last checkpoint is the youngest; `folder` itself may be one.

    Raises:
        FileAccessError: there is none.
    """
    runs = [path.parent for path in folder.rglob(CONFIG)]
    if not runs:
        raise FileAccessError(
            f"{folder}: must hold a run to go on with, got none. Train first, or name one with --out."
        )
    return max(runs, key=_youth)


def _youth(run: Path) -> float:
    places = [run / CONFIG, *(run / "checkpoints" / name / "manifest.json" for name in ("last", "last.previous"))]
    return max(place.stat().st_mtime for place in places if place.exists())


def open_run(path: Path) -> RunDirectory:
    """The directory of an existing run, in which only the first of several processes writes."""
    return (RunDirectory if team().leads else Witness).open(path)


def config_from(document: dict, run: RunDirectory) -> TrainConfig:
    """The settings that a run was started with.

    Raises:
        DataError: unknown, missing or impossible settings.
    """
    if set(document) != {f.name for f in fields(TrainConfig)}:
        raise DataError(f"{run.path}/config.yaml: its settings are not those of this version. Start a new run.")
    try:
        return TrainConfig(**document)
    except (TypeError, UsageError) as error:
        raise DataError(f"{run.path}/config.yaml: {error} Restore the file, or start a new run.") from None


def reference_rows(dataset: Dataset, split: Split, predictions: Predictions) -> dict[str, dict]:
    """What the model is held against: the best that the data allow, where known, and the majority."""
    rows = {}
    if dataset.known_best is not None:
        rows["best reachable"] = dataset.known_best.metrics_for(split.name, predictions.missing)
    rows["majority"] = majority_metrics(dataset.train.labels, split.labels)
    return rows


def notes(dataset: Dataset, spec: MissingSpec) -> tuple[str, ...]:
    """What a reader of the table must know: what was cleaned or is not real, what is absent, what was capped."""
    absent = [NAMES[m] for m in MODALITIES if m not in dataset.modalities()]
    sentences = [*dataset.notes, rate_note(spec, dataset.test.present(), dataset.modalities())]
    if absent:
        sentences.append(f"No training clip has {' or '.join(absent)}: the model does without.")
    return tuple(sentence for sentence in sentences if sentence)


def _check_method(config: ModelConfig, dataset: Dataset) -> None:
    """Whether the method of recovery can be trained on these data and by these processes."""
    method = recovery_class(config)
    for split in (dataset.train, dataset.valid, dataset.test) if method.needs_conversations else ():
        if split.conversation is None:
            raise MethodUnavailable(
                f"--method {config.method}: must have clips in conversation order, with ids such as video$_$3, got "
                f"{split.ids[0]!r} in {dataset.source} ({split.name}). Use another method or another file."
            )
    if team().size > 1 and not method.divides:
        possible = [name for name, other in METHOD_CLASSES.items() if other.divides]
        anchored = " with --anchor" if config.anchor != "none" else ""
        raise MethodUnavailable(
            f"--method {config.method}{anchored}: cannot be trained by several processes, got {team().size}. "
            f"Start it without torchrun, or use one of {', '.join(possible)} as it is."
        )


def device_type(device: str) -> str:
    """cpu, cuda, ...: the kind of a device of this machine.

    Raises:
        UsageError: the machine has no such device.
    """
    try:
        return torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--device: must be a device of this machine, got {device!r} ({reason}). Use --device cpu."
        ) from None


def _check_runtime(config: TrainConfig) -> None:
    device = device_type(local_device(config.device))
    select("reverse_loop", config.backend, device=device, needs_grad=config.grad_steps() != 0)
    select("denoiser", config.backend, device=device, needs_grad=True)  # Eq. 3


def _train(trainer: Trainer, watch: Watch, stop: StopRequest) -> Result:
    """`stop` listens since before the trainer was made: in the imports of torch's optimizers Ctrl-C may get lost."""
    run, config, dataset = trainer.run, trainer.config, trainer.dataset
    started = time.perf_counter()
    with use_backend(config.backend):
        batches, stream = len(trainer.batches(1)), None if team().leads else io.StringIO()
        watching = watched(run, watch) if team().leads else nullcontext()
        with Progress(config.max_epochs(), batches, stream=stream) as progress, watching:
            trainer.fit(progress, stop)
        stop.end()
        team().barrier()  # the first process has written the best checkpoint
        rows, rate, valid, test, calibration = _final(trainer)
    seconds = time.perf_counter() - started
    throughput = trainer.train_samples / trainer.train_seconds if trainer.train_seconds else None
    summary = {
        "run_dir": str(run.path),
        "data": dataset.source,
        "preset": config.preset,
        "seed": config.seed,
        "epochs": trainer.cursor.epoch - 1,
        "best_epoch": trainer.cursor.best_epoch,
        "seconds": round(seconds, 3),
        "train_samples_per_s": None if throughput is None else round(throughput, 2),
        "missing": trainer.spec.name,
        "realised_missing_rate": rate,
        "valid": valid,
        "test": test,
    }
    table = metrics_table(rows)
    run.write_calibration(calibration)
    run.write_metrics({key: value for key, value in summary.items() if key not in ("seconds", "train_samples_per_s")})
    run.append_timing({"seconds": seconds, "train_samples_per_s": throughput})
    run.write_table(table)
    return Result(summary, rows, table, notes(dataset, trainer.spec))


def _final(trainer: Trainer) -> tuple[dict[str, dict], float, dict, dict, dict[str, float]]:
    """The best checkpoint on validation and, read here for the first time, on test; and its calibration."""
    run, config, dataset = trainer.run, trainer.config, trainer.dataset
    model, _ = load_model(run.checkpoint("best"))
    model.to(trainer.device)
    results = {}
    for split in (dataset.valid, dataset.test):
        predictions = evaluate_split(
            model,
            dataset,
            split,
            trainer.spec,
            seed=config.seed,
            samples=config.samples,
            batch_size=config.batch_size,
        )
        results[split.name] = metrics(predictions.mean, split.labels)
        save_predictions(run, split, trainer.spec.name, predictions)
    rows = {METHOD_TITLES[config.method]: results["test"], **reference_rows(dataset, dataset.test, predictions)}
    calibration = calibrate(model, dataset, seed=config.seed, samples=config.samples)
    return rows, predictions.rate, results["valid"], results["test"], calibration


def save_predictions(
    run: RunDirectory, split: Split, name: str, predictions: Predictions, radius: float | None = None
) -> None:
    """Keep what a table was computed from, with the 80 % interval of the draws, and the conformal one's half width."""
    low, high = interval_of_draws(predictions.draws)
    run.write_predictions(
        split.name,
        name,
        {
            "id": split.ids,
            "label": split.labels,
            "prediction": predictions.mean,
            "std": predictions.std,
            "low": low.astype("float32"),
            "high": high.astype("float32"),
            "missing": predictions.missing,
            **({} if radius is None else {"conformal_radius": radius}),
        },
    )
