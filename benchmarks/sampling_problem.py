"""What benchmarks/sampling.py samples: a denoiser with a condition."""

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from presets import PRESETS, Preset, randomise, useful_flop
from torch import Tensor

import rohydr_fast
from rohydr_fast.diffusion.schedule import ReverseTable, Schedule
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.ops import philox
from rohydr_fast.ops.reverse_loop.reference import NoiseKey, step_noise

__all__ = ["PREDICTION", "PRESETS", "Preset", "Problem", "make_problem", "useful_flop"]

PREDICTION = "x0"
"""The last mean is then the network's output itself, so its error arrives in x_0 undiminished; costs are the same."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A denoiser, an encoded condition and a number of steps."""

    preset: Preset
    denoiser: Denoiser
    cond: Tensor  # (B, S, W)
    steps: int
    key_mask: Tensor | None = None  # (B, S); every row has a key
    token_mask: Tensor | None = None  # (B, T)
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, T, C) of x."""
        return len(self.cond), self.preset.tokens, self.preset.channels

    @cached_property
    def table(self) -> ReverseTable:
        """Timesteps and coefficients of the chain."""
        return Schedule().table(self.steps, PREDICTION)

    def philox_noise(self) -> Tensor:
        """(K, B, T, C): the numbers that `rohydr_fast.sample` draws, in the order of use."""
        like, key = torch.empty(self.shape), NoiseKey(self.seed, torch.arange(len(self.cond)), 0)
        steps = [step_noise(like, key, step=i, stream=philox.Stream.STEP) for i in range(self.steps, 1, -1)]
        return torch.stack([step_noise(like, key, step=0, stream=philox.Stream.START), *steps])

    def sample(self, backend: str, *, double: bool = False) -> Tensor:
        """x_0 by this package, with its own noise; `double` computes in float64."""
        denoiser = copy.deepcopy(self.denoiser).double() if double else self.denoiser
        with torch.inference_mode():
            return rohydr_fast.sample(
                denoiser,
                self.cond.double() if double else self.cond,
                steps=self.steps,
                seed=self.seed,
                tokens=self.preset.tokens,
                key_mask=self.key_mask,
                token_mask=self.token_mask,
                prediction=PREDICTION,
                backend=backend,
            )


def make_problem(preset: Preset, batch: int, steps: int, *, seed: int = 0, **masks: Tensor | None) -> Problem:
    """Random weights and a random condition."""
    generator = torch.Generator().manual_seed(seed)
    denoiser = Denoiser(preset.channels, preset.width, preset.blocks, preset.heads).eval().requires_grad_(False)
    randomise(denoiser, generator)
    cond = torch.randn(batch, preset.keys, preset.width, generator=generator)
    return Problem(preset, denoiser, cond, steps, seed=seed, **masks)
