"""The sizes that benchmarks run, the useful work of one pass through the denoiser, and random weights for it."""

from dataclasses import dataclass

import torch
from torch import nn


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


def condition_flop(preset: Preset) -> int:
    """What keys and values of one sample's condition take, once for all steps: 4 L S W^2."""
    return 4 * preset.blocks * preset.keys * preset.width**2


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Move all parameters off their initial values: gates start at zero (adaLN-Zero), which would hide every block."""
    for parameter in module.parameters():
        fan_in = parameter.shape[-1] if parameter.dim() > 1 else 100
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * min(fan_in**-0.5, 0.15))


def one_modality_absent(keys: int) -> torch.Tensor:
    """Key mask (3, S): a row with both modalities, one without the first, one without the second."""
    mask = torch.ones(3, keys, dtype=torch.bool)
    mask[1, : keys // 2] = False
    mask[2, keys // 2 :] = False
    return mask
