"""What benchmarks/training.py trains: a whole model, on clips of MOSI's sizes, by the three stages of Algorithm 1."""

import copy
import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from presets import Preset, randomise
from torch import Tensor
from training_problem import diffusion_flop

from rohydr_fast.config import ModelConfig, TrainConfig
from rohydr_fast.data.dataset import Dataset, collate
from rohydr_fast.data.synthetic import SPLITS, Sampler, mmsa_shape
from rohydr_fast.modalities import MODALITIES
from rohydr_fast.training.stages import StageBatch, StageRunner, make_optimizers
from rohydr_fast.training.trainer import build_model

LENGTHS = {"full": "full", "mosi": "shared"}
"""Of the clips: all tokens are real, or as many as in MOSI, a third, drawn for each clip."""


@dataclass(frozen=True)
class SizedConfig(TrainConfig):
    """A run's settings with a benchmark's sizes in place of the package's preset."""

    sizes: dict = field(default_factory=dict)

    def model_config(self, dataset: Dataset) -> ModelConfig:
        """As `TrainConfig.model_config`."""
        return replace(super().model_config(dataset), **self.sizes)


def make_config(preset: Preset, steps: int, batch: int, **settings) -> SizedConfig:
    """The defaults of a run with the preset `paper`, and the sizes of `preset`."""
    sizes = {
        "channels": preset.channels,
        "width": preset.width,
        "blocks": preset.blocks,
        "heads": preset.heads,
        "fusion_heads": math.gcd(8, preset.channels),
    }
    return SizedConfig(preset="paper", steps=steps, batch_size=batch, sizes=sizes, **settings)


def mosi(preset: Preset, clips: int, lengths: str) -> Dataset:
    """Synthetic clips with MOSI's numbers of channels, and so many in the training split."""
    shape = mmsa_shape("mosi", clips=clips)
    shape = replace(shape, steps=dict.fromkeys(MODALITIES, preset.tokens), lengths=LENGTHS[lengths])
    shape = replace(shape, clips=(*shape.clips[:2], 1))  # the test split is not read
    sampler = Sampler(shape)
    splits = {name: sampler.split(name) for name in SPLITS}
    return Dataset(name="synthetic-mosi", source="synthetic", sha256=sampler.fingerprint(), **splits)


def keep_one(clips: int) -> np.ndarray:
    """Missing indicator (B, 3): two modalities of each clip, every pair equally often."""
    return np.arange(clips)[:, None] % 3 != np.arange(3)


class Iteration:
    """The stages of one batch with their optimizer steps; two modalities are missing of each clip.

    Args:
        frozen: parameters do not move and nothing is dropped out, so that losses and gradients can be compared; all
            weights are random, and the gradients of each stage are kept.
    """

    def __init__(self, preset: Preset, batch: int, steps: int, lengths: str, *, frozen: bool = False):
        dataset = mosi(preset, batch, lengths)
        settings = {"lr": 0.0, "clip": 0.0, "dropout": 0.0} if frozen else {}
        config = make_config(preset, steps, batch, **settings)
        model = build_model(config.model_config(dataset), config.seed, dataset)
        if frozen:
            randomise(model, torch.Generator().manual_seed(0))
        self.preset, self.frozen = preset, frozen
        self.lengths, self.missing = dataset.train.lengths, keep_one(batch)
        made = collate(dataset.train, np.arange(batch), MODALITIES)
        missing = torch.from_numpy(self.missing)
        self.batch = StageBatch(made.x, made.lengths, made.label, made.sample_id, made.present, missing)
        self._start(model, config)

    def _start(self, model, config: TrainConfig) -> None:
        self.runner = StageRunner(model, config, *make_optimizers(model, config))
        self._gradients: dict[str, Tensor] = {}

    def run(self, method) -> Tensor:
        """All stages by `method`; every loss term, (n,) float64."""
        terms = []
        if self.frozen:
            self.runner.model.zero_grad()  # D keeps its gradient from stage to stage
        with method.installed():
            for stage in self.runner.stages:
                found = self.runner.run(stage, self.batch, epoch=1, batch_index=0)
                terms += [value for name, value in found.items() if not name.endswith("grad_norm")]
                if self.frozen:
                    self._keep_gradients(stage.name)
        return torch.tensor(terms, dtype=torch.float64)

    def _keep_gradients(self, stage: str) -> None:
        for name, parameter in self.runner.model.named_parameters():
            if parameter.grad is not None:
                self._gradients[f"{stage}.{name}"] = parameter.grad.clone()

    def gradients(self) -> dict[str, Tensor]:
        """Of every stage of the last run of a frozen one, by stage and name."""
        return self._gradients

    def double(self) -> "Iteration":
        """The same in float64."""
        other = copy.copy(self)
        other._start(copy.deepcopy(self.runner.model).double(), self.runner.config)
        x = {m: features.double() for m, features in self.batch.x.items()}
        other.batch = replace(self.batch, x=x, label=self.batch.label.double())
        return other

    def on(self, device: str) -> "Iteration":
        """The same on a device; the ids of the samples stay on the CPU, where noise is keyed."""
        other, batch = copy.copy(self), self.batch
        other._start(copy.deepcopy(self.runner.model).to(device), self.runner.config)
        maps = {name: {m: part.to(device) for m, part in getattr(batch, name).items()} for name in ("x", "lengths")}
        rest = {name: getattr(batch, name).to(device) for name in ("label", "present", "missing")}
        other.batch = replace(batch, **maps, **rest)
        return other

    def flop(self) -> int:
        """See `training_flop`."""
        steps = next(iter(self.runner.model.hddm.values())).steps
        return training_flop(self.preset, steps, self.lengths, self.missing)


def training_flop(preset: Preset, steps: int, lengths: dict[str, np.ndarray], missing: np.ndarray) -> int:
    """Useful operations of the diffusion while clips pass all stages; extractors, UR, F, MR, D and C do not count.

    For each missing modality of each clip, with its real tokens and keys: three chains and one Eq. 3, there and back.

    Args:
        lengths: m -> (N,) real tokens; a recovered modality has as many as the others.
        missing: (N, 3).
    """
    total = 0
    for row, absent in enumerate(missing):
        own = {m: int(lengths[m][row]) for m in MODALITIES}
        keys = sum(own[m] for m, is_missing in zip(MODALITIES, absent, strict=True) if not is_missing)
        for m, is_missing in zip(MODALITIES, absent, strict=True):
            if is_missing:
                sizes = replace(preset, tokens=own[m], keys=keys)
                total += 3 * diffusion_flop(sizes, steps) + diffusion_flop(sizes, 1)
    return total
