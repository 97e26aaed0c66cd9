"""An epoch of training by the package's Trainer on clips of MOSI's sizes: its seconds, and where they go."""

import tempfile
from pathlib import Path

import numpy as np
from parts import PARTS, REST, timed_parts
from presets import Preset
from training_iteration import make_config, mosi, training_flop

from rohydr_fast.training.experiment import missing_spec
from rohydr_fast.training.interrupt import StopRequest
from rohydr_fast.training.progress import Progress
from rohydr_fast.training.run_directory import RunDirectory
from rohydr_fast.training.trainer import Trainer

MISSING_RATE = "0.7"
"""More than 2/3, so every clip keeps exactly one modality."""
SECONDS_BETWEEN_LINES = 60.0


class Epoch:
    """The first epoch of a new run, as the trainer counts it: without validation and checkpoints.

    Args:
        clips: of the training split; MOSI has 1,284.
    """

    def __init__(self, preset: Preset, batch: int, steps: int, lengths: str, clips: int):
        self.preset, self.dataset = preset, mosi(preset, clips, lengths)
        self.config = make_config(preset, steps, batch, missing_rate=MISSING_RATE, epochs=1, patience=0)

    def run(self, method) -> tuple[float, dict[str, float]]:
        """Train by `method`; seconds of the epoch and of each part."""
        with tempfile.TemporaryDirectory() as folder, method.installed():
            trainer = self._trainer(Path(folder) / "run")
            optimizers = [trainer.optimizer, trainer.optimizer_d]
            shown = Progress(1, self.batches(), interval=SECONDS_BETWEEN_LINES)
            with timed_parts(optimizers) as clock, shown, StopRequest() as stop:
                trainer.fit(shown, stop)
        parts = {name: clock.seconds[name] for name in PARTS if name != REST}
        return trainer.train_seconds, parts | {REST: trainer.train_seconds - sum(parts.values())}

    def batches(self) -> int:
        """How many an epoch has."""
        return -(-len(self.dataset.train) // self.config.batch_size)

    def flop(self) -> int:
        """See `training_flop`."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(Path(folder) / "run")
        missing = trainer.missing(1, trainer.batches(1))
        return training_flop(self.preset, self.config.steps, self.dataset.train.lengths, missing)

    def _trainer(self, path: Path) -> Trainer:
        return Trainer(self.dataset, self.config, missing_spec(self.config), RunDirectory.create(path, "epoch"))


def shares(parts: list[dict[str, float]]) -> dict[str, float]:
    """Each part's share of the epoch, the median over rounds."""
    return {name: float(np.median([one[name] / sum(one.values()) for one in parts])) for name in PARTS}
