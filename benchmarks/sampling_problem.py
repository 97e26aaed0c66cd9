"""What benchmarks/sampling.py samples: the presets, their useful work, and a denoiser with a condition."""

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import rohydr_fast
from rohydr_fast.diffusion.schedule import ReverseTable, Schedule
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.ops import philox
from rohydr_fast.ops.reverse_loop.reference import NoiseKey, step_noise

PREDICTION = "x0"
"""The last mean is then the network's output itself, so its error arrives in x_0 undiminished; costs are the same."""


@dataclass(frozen=True)
class Preset:
    """One size of the denoiser and of its task."""

    width: int
    blocks: int
    heads: int
    tokens: int = 50
    keys: int = 100  # two modalities
    channels: int = 32


PRESETS = {"narrow": Preset(32, 4, 4), "paper": Preset(64, 6, 4), "wide": Preset(128, 6, 8)}


def useful_flop(preset: Preset) -> int:
    """Floating-point operations that one step of one sample cannot do without, a multiply-add being two.

    L (28 T W^2 + 4 T (T + S) W) + 2 T C W + 4 T C W: in each block the projections (3 + 1 of self-attention, 1 + 1 of
    cross-attention) and an MLP of ratio 4, then scores and values of both attentions; in and out projection. What a
    chain needs once (condition keys and values, modulation) and elementwise work are left out.
    """
    w, t, s, c = preset.width, preset.tokens, preset.keys, preset.channels
    return preset.blocks * (28 * t * w * w + 4 * t * (t + s) * w) + 2 * t * c * w + 4 * t * c * w


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
    """Random weights and a random condition. Gates start at zero (adaLN-Zero), which would hide every block: all
    parameters are moved off their initial values."""
    generator = torch.Generator().manual_seed(seed)
    denoiser = Denoiser(preset.channels, preset.width, preset.blocks, preset.heads).eval().requires_grad_(False)
    for parameter in denoiser.parameters():
        fan_in = parameter.shape[-1] if parameter.dim() > 1 else 100
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * min(fan_in**-0.5, 0.15))
    cond = torch.randn(batch, preset.keys, preset.width, generator=generator)
    return Problem(preset, denoiser, cond, steps, seed=seed, **masks)
