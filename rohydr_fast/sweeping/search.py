"""A search for settings by Optuna: validation MAE alone decides, and the test split is never read."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..config import TrainConfig
from ..errors import UsageError
from ..evaluation.tables import UNDEFINED
from ..ops.registry import backend
from ..training.experiment import missing_spec, read_dataset
from ..training.interrupt import StopRequest
from ..training.progress import Progress
from ..training.run_directory import RunDirectory, write_atomic
from ..training.trainer import Trainer

STUDY = "rohydr_fast"
JOURNAL = "study.journal"

SPACE = {"lr": (1e-4, 1e-2), "lambda_g": (0.1, 10.0), "lambda_al": (0.05, 0.95), "lambda_c": (0.05, 0.95)}
"""What is searched: low and high. lr and lambda_g on a logarithmic scale."""
LOGARITHMIC = ("lr", "lambda_g")


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    document: dict  # best settings, their validation MAE, number of trials
    table: str  # Markdown, best trials first


def search(base: TrainConfig, *, trials: int, seed: int, out: Path) -> Found:
    """Run trials until `out` holds `trials` that ended, by a tree-structured Parzen estimator.

    The study is a journal in `out`, so that several processes can share it and a stopped search goes on. Each trial is
    a run directory of its own. ``best.yaml`` holds all settings of the best trial, for ``--config``.

    Raises:
        UsageError: Optuna is not installed, or fewer than one trial.
    """
    try:
        import optuna
    except ImportError:
        raise UsageError('--search: needs optuna. Install it with: pip install "rohydr_fast[sweep]"') from None
    if trials < 1:
        raise UsageError(f"--search: must be 1 or more trials, got {trials}. Change it.")
    out.mkdir(parents=True, exist_ok=True)
    dataset = read_dataset(base)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = optuna.storages.journal.JournalFileBackend(str(out / JOURNAL))
    study = optuna.create_study(
        study_name=STUDY,
        storage=optuna.storages.JournalStorage(journal),
        sampler=optuna.samplers.TPESampler(seed=seed),
        load_if_exists=True,
    )

    def objective(trial) -> float:
        drawn = {name: trial.suggest_float(name, *bounds, log=name in LOGARITHMIC) for name, bounds in SPACE.items()}
        config = replace(base, seed=seed, **drawn)
        run = RunDirectory.create(out / f"trial{trial.number}-{os.getpid()}", "trial")
        run.write_config(asdict(config))
        trainer = Trainer(dataset, config, missing_spec(config), run)
        progress = Progress(config.max_epochs(), len(trainer.batches(1)))
        with run.lock(), backend(config.backend), StopRequest() as stop, progress:
            trainer.fit(progress, stop)
        return trainer.cursor.best_mae

    ended = (optuna.trial.TrialState.COMPLETE,)
    while len(study.get_trials(deepcopy=False, states=ended)) < trials:
        study.optimize(objective, n_trials=1)
    return _found(study, base, seed, out)


def _found(study, base: TrainConfig, seed: int, out: Path) -> Found:
    import yaml

    best = replace(base, seed=seed, **study.best_params)
    write_atomic(out / "best.yaml", yaml.safe_dump(asdict(best), sort_keys=False).encode())
    names = list(SPACE)
    ranked = sorted((t for t in study.get_trials() if t.value is not None), key=lambda trial: trial.value)
    lines = ["| trial | " + " | ".join(names) + " | valid MAE |", "|---" * (len(names) + 2) + "|"]
    for trial in ranked:
        cells = [f"{trial.params[name]:.4g}" if name in trial.params else UNDEFINED for name in names]
        lines.append(f"| {trial.number} | " + " | ".join(cells) + f" | {trial.value:.4f} |")
    table = "\n".join(lines) + "\n"
    write_atomic(out / "trials.md", table.encode())
    return Found({"best": study.best_params, "valid_MAE": study.best_value, "trials": len(ranked)}, table)
