"""A training run: epochs of Algorithm 1, validation, checkpoints, early stopping, and exact resuming."""

import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import ModelConfig, TrainConfig
from ..data.conversations import conversation_batches
from ..data.dataset import Dataset, Split, collate, epoch_order
from ..data.missing import MissingSpec, missing_table, realised_rate
from ..distributed import local_device, team
from ..errors import DataError, FileAccessError
from ..evaluation.metrics import metrics
from ..evaluation.predict import evaluate_split
from ..models.rohydr import RoHyDR
from ..ops.philox import derive_seed
from .checkpoint import (
    check_shapes,
    flatten_optimizer,
    load_checkpoint,
    resolve_checkpoint,
    restore_optimizer,
    save_checkpoint,
    set_aside,
)
from .interrupt import Interrupted, StopRequest
from .progress import Progress
from .run_directory import RunDirectory
from .stages import StageBatch, StageRunner, make_optimizers, seeded

FORMAT = 1


@dataclass
class Cursor:
    """Where a run stands: the next stage to run, and what the epoch has added up so far."""

    epoch: int = 1
    batch: int = 0
    stage: int = 0
    row: dict[str, float] = field(default_factory=dict)  # terms of the batch under way
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch
    counts: dict[str, int] = field(default_factory=dict)
    best_epoch: int = 0
    best_mae: float | None = None
    finished: bool = False


class Trainer:
    """Trains a RoHyDR on a data set and keeps everything in a run directory.

    Args:
        dataset: see `data.dataset`; its test split is not read here.
        config: the run's settings.
        spec: how modalities go missing, in training and in validation.
        run: where metrics and checkpoints go.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, spec: MissingSpec, run: RunDirectory):
        self.dataset, self.config, self.spec, self.run = dataset, config, spec, run
        self.device = local_device(config.device)
        self.model = build_model(config.model_config(dataset), config.seed, dataset).to(self.device)
        self.optimizer, self.optimizer_d = make_optimizers(self.model, config)
        self.averaged = None
        if config.ema:
            # Buffers are copied: running statistics are averages already, and a bank of clips has no average.
            self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.runner = StageRunner(self.model, config, self.optimizer, self.optimizer_d)
        self.cursor = Cursor()
        self.train_seconds, self.train_samples = 0.0, 0

    @property
    def evaluated(self) -> RoHyDR:
        """The weights that validation and test use: the averaged ones where there are any."""
        return self.model if self.averaged is None else self.averaged.module

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Rows of each batch of an epoch: a function of (seed, epoch)."""
        order = epoch_order(len(self.dataset.train), self.config.seed, epoch)
        if self.model.recovery.needs_conversations:
            return conversation_batches(self.dataset.train.conversation, order, self.config.batch_size)
        return [order[i : i + self.config.batch_size] for i in range(0, len(order), self.config.batch_size)]

    def missing(self, epoch: int, batches: list[np.ndarray]) -> np.ndarray:
        """(N, 3) missing indicator of the training split in an epoch."""
        split = self.dataset.train
        return missing_table(
            self.spec,
            split.present(),
            split.sample_ids,
            seed=self.config.seed,
            epoch=epoch,
            batches=batches,
            modalities=self.model.config.modalities,
        )

    def fit(self, progress: Progress, stop: StopRequest) -> None:
        """Train to the end, or until validation stops improving.

        Args:
            stop: one that listens already.

        Raises:
            Interrupted: after SIGINT or SIGTERM; the step is finished and a checkpoint written.
            NumericsError: a loss or gradient is not finite.
        """
        self._stop_if_asked(stop)  # what came before the first step
        while not self.cursor.finished:
            self._epoch(progress, stop)
            self._stop_if_asked(stop)  # what came in a validation

    def _epoch(self, progress: Progress, stop: StopRequest) -> None:
        cursor, split = self.cursor, self.dataset.train
        batches = self.batches(cursor.epoch)
        missing = self.missing(cursor.epoch, batches)
        stages = self.runner.stages[:1] if cursor.epoch <= self.config.warm_up else self.runner.stages
        progress.epoch(cursor.epoch)
        while cursor.batch < len(batches):
            rows = batches[cursor.batch]
            start = time.perf_counter()
            batch = self._stage_batch(split, rows, missing)
            while cursor.stage < len(stages):
                stage = stages[cursor.stage]
                cursor.row.update(self.runner.run(stage, batch, epoch=cursor.epoch, batch_index=cursor.batch))
                cursor.stage += 1
                if cursor.stage < len(stages):
                    self._stop_if_asked(stop)
            if self.averaged is not None:
                self.averaged.update_parameters(self.model)
            self._finish_batch(len(rows))
            self.train_seconds += time.perf_counter() - start
            self.train_samples += len(rows)
            progress.batch(cursor.batch, self._stage_means(), len(rows))
            self._stop_if_asked(stop)
        self._finish_epoch(realised_rate(missing, split.present(), self.model.config.modalities), progress)

    def _stage_means(self) -> dict[str, float]:
        means = cursor_means(self.cursor)
        return {stage.name: means[stage.name] for stage in self.runner.stages if stage.name in means}

    def _stage_batch(self, split: Split, rows: np.ndarray, missing: np.ndarray) -> StageBatch:
        device = self.device
        rows, counts = team().part(rows)
        batch = collate(split, rows, self.model.config.modalities, self.dataset.nonfinite_zeroed)
        return StageBatch(
            x={m: x.to(device) for m, x in batch.x.items()},
            lengths={m: lengths.to(device) for m, lengths in batch.lengths.items()},
            label=batch.label.to(device),
            sample_id=batch.sample_id,
            present=batch.present.to(device),
            missing=torch.from_numpy(missing[rows]).to(device),
            conversation=None if batch.conversation is None else batch.conversation.to(device),
            counts=counts,
        )

    def _finish_batch(self, samples: int) -> None:
        cursor = self.cursor
        self.run.append({"kind": "step", "epoch": cursor.epoch, "batch": cursor.batch, **cursor.row})
        for name, value in cursor.row.items():
            cursor.sums[name] = cursor.sums.get(name, 0.0) + value * samples
            cursor.counts[name] = cursor.counts.get(name, 0) + samples
        cursor.row, cursor.stage = {}, 0
        cursor.batch += 1

    def _finish_epoch(self, rate: float, progress: Progress) -> None:
        cursor, split = self.cursor, self.dataset.valid
        predictions = evaluate_split(
            self.evaluated,
            self.dataset,
            split,
            self.spec,
            seed=self.config.seed,
            samples=self.config.samples,
            batch_size=self.config.batch_size,
        )
        valid = metrics(predictions.mean, split.labels)
        better = cursor.best_mae is None or valid["MAE"] < cursor.best_mae
        self.run.append(
            {
                "kind": "epoch",
                "epoch": cursor.epoch,
                "train": cursor_means(cursor),
                "realised_missing_rate": rate,
                "valid": valid,
                "best": better,
            }
        )
        progress.message(
            f"epoch {cursor.epoch}: valid MAE {valid['MAE']:.3f}, ACC2 {_percent(valid['Non0_acc_2'])}"
            + (", best so far" if better else "")
        )
        if better:
            cursor.best_epoch, cursor.best_mae = cursor.epoch, valid["MAE"]
            if team().leads:
                save_checkpoint(self.run.checkpoint("best"), {"model": tensors_of(self.evaluated)}, self._state())
        waited = cursor.epoch - max(cursor.best_epoch, self.config.warm_up)
        cursor.finished = cursor.epoch >= self.config.max_epochs() or 0 < self.config.patience <= waited
        cursor.epoch, cursor.batch, cursor.sums, cursor.counts = cursor.epoch + 1, 0, {}, {}
        self.save()

    def _stop_if_asked(self, stop: StopRequest) -> None:
        """All processes stop after the same step, whichever of them a signal has reached."""
        if not team().any(stop.signal_number is not None):
            return
        self.save()
        raise Interrupted(
            f"stopped on a signal; the step is finished and saved. Go on with: "
            f"python -m rohydr_fast.train --resume {self.run.path}",
            stop.signal_number or signal.SIGTERM,
        )

    def _state(self) -> dict:
        return {
            "format": FORMAT,
            "model": self.model.config.to_dict(),
            "train": asdict(self.config),
            "missing": self.spec.to_dict(),
            "data_sha256": self.dataset.sha256,
            "cursor": asdict(self.cursor),
            "metrics_offset": self.run.offset(),
        }

    def save(self) -> None:
        """Write `checkpoints/last`: everything that `restore` needs to go on bit for bit. The first process writes."""
        if not team().leads:
            return
        tensors = {"model": tensors_of(self.model)}
        state = self._state()
        names = dict(self.model.named_parameters())
        for group, optimizer in self._optimizers().items():
            tensors[group], state[group] = flatten_optimizer(optimizer, names)
        if self.averaged is not None:
            tensors["ema"] = tensors_of(self.averaged)
        save_checkpoint(self.run.checkpoint("last"), tensors, state)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        both = {"optimizer": self.optimizer, "optimizer_d": self.optimizer_d}
        return {group: optimizer for group, optimizer in both.items() if optimizer is not None}

    def restore(self, *, fall_back: bool = False) -> str | None:
        """Go on from `checkpoints/last`; a run without a checkpoint starts from the beginning.

        Args:
            fall_back: where it is damaged and the checkpoint before is valid, go on from that one. The damaged one is
                kept as ``last.damaged``.

        Returns:
            A sentence about a checkpoint that was not used.

        Raises:
            DataError: the checkpoint is damaged, of another data file or of another model.
        """
        path = self.run.checkpoint("last")
        try:
            resolve_checkpoint(path)
        except FileAccessError:
            self.run.truncate(0)
            return None
        try:
            self._restore(path)
        except DataError as error:
            before = path.with_name("last.previous")
            if not (fall_back and path.exists() and before.exists()):
                raise
            self._restore(before)
            team().barrier()
            if team().leads:
                set_aside(path)
            return f"{path} was not used and is kept as {path.name}.damaged: {error}"
        return None

    def _restore(self, path: Path) -> None:
        tensors, state = load_checkpoint(path)
        check_format(state, path)
        if state["data_sha256"] != self.dataset.sha256:
            raise DataError(f"{path}: was trained on another data file than {self.dataset.source}. Give it that file.")
        load_tensors(self.model, tensors["model"], path)
        names = dict(self.model.named_parameters())
        for group, optimizer in self._optimizers().items():
            restore_optimizer(optimizer, names, tensors[group], state[group])
        if self.averaged is not None:
            load_tensors(self.averaged, tensors["ema"], path)
        self.cursor = Cursor(**state["cursor"])
        self.run.truncate(state["metrics_offset"])


def cursor_means(cursor: Cursor) -> dict[str, float]:
    """Mean of each term over the clips of the epoch so far."""
    return {name: cursor.sums[name] / cursor.counts[name] for name in cursor.sums}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def build_model(config: ModelConfig, seed: int, dataset: Dataset | None = None) -> RoHyDR:
    """A new model with weights drawn from `seed`, standardising features as `dataset`'s training split asks."""
    with seeded(derive_seed(seed)):
        model = RoHyDR(config)
    if dataset is not None:
        statistics = dataset.feature_statistics()
        for m, extractor in model.extractors.items():
            extractor.set_statistics(*statistics[m])
    return model


def load_model(directory: Path) -> tuple[RoHyDR, dict]:
    """The model of a checkpoint and the checkpoint's state.

    Raises:
        DataError: a file of the checkpoint is missing, damaged, or of another shape.
    """
    tensors, state = load_checkpoint(directory)
    check_format(state, directory)
    return model_of(state["model"], tensors.get("model", {}), directory), state


def model_of(document: dict, tensors: dict[str, torch.Tensor], path: Path) -> RoHyDR:
    """The model that a file describes, with the tensors that it holds.

    Raises:
        DataError: settings that are not valid, or tensors that are not theirs. Nothing is allocated before both are.
    """
    config = ModelConfig.from_dict(document)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in RoHyDR(config).state_dict().items()}
    check_shapes(expected, tensors, str(path))
    model = build_model(config, 0)
    load_tensors(model, tensors, path)
    return model


def check_format(state: dict, path: Path) -> None:
    """The checkpoint must be of this version's format."""
    if state.get("format") != FORMAT:
        raise DataError(
            f"{path}: checkpoint format must be {FORMAT}, got {state.get('format')!r}. Train again with this version."
        )


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def load_tensors(module: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load `tensors` of the checkpoint at `path` after checking every name and shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_shapes(expected, tensors, str(path))
    module.load_state_dict(tensors)
