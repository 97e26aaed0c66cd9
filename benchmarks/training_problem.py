"""What benchmarks/training.py runs forward and backward: Eq. 3, and the reverse chains of two missing modalities."""

import copy
from typing import NamedTuple

import torch
from presets import Preset, condition_flop, one_modality_absent, randomise, useful_flop
from torch import Tensor

from rohydr_fast import losses
from rohydr_fast.diffusion.schedule import Schedule
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.models.generator import HDDM
from rohydr_fast.models.recovery import chained as recovery
from rohydr_fast.models.recovery import diffusion as eq3
from rohydr_fast.models.sequences import Sequence
from rohydr_fast.ops.reverse_loop import NoiseKey

MODALITIES = ("a", "v")
"""Those that are missing."""
PREDICTION = "x0"
"""Keeps x in the size of the data, whatever random weights do; costs are the same."""


class Missing(NamedTuple):
    """One missing modality: its diffusion model, what is available, and the ground truth."""

    hddm: HDDM
    cond: Tensor  # (B, S, W), a leaf
    key_mask: Tensor | None  # (B, S)
    truth: Sequence  # x (B, T, C)
    noise: NoiseKey


class Diffusion:
    """Two missing modalities of every clip, with random weights, conditions and ground truth.

    Args:
        masked: three clips with padding and with a condition that lacks a modality, instead of `batch` full ones.
    """

    def __init__(self, preset: Preset, batch: int, steps: int, *, masked: bool = False, seed: int = 0):
        self.preset, self.batch = preset, 3 if masked else batch
        generator = torch.Generator().manual_seed(seed)
        key_mask, lengths = None, torch.full((self.batch,), preset.tokens)
        if masked:
            key_mask, lengths = one_modality_absent(preset.keys), torch.tensor([preset.tokens, preset.tokens // 2, 1])
        self.missing = []
        for m in MODALITIES:
            denoiser = Denoiser(preset.channels, preset.width, preset.blocks, preset.heads)
            randomise(denoiser, generator)
            hddm = HDDM(m, denoiser, Schedule(), steps=steps, prediction=PREDICTION, loss="hybrid")
            cond = torch.randn(self.batch, preset.keys, preset.width, generator=generator).requires_grad_()
            x = torch.randn(self.batch, preset.tokens, preset.channels, generator=generator)
            noise = hddm.noise_key(seed, torch.arange(self.batch))
            self.missing.append(Missing(hddm, cond, key_mask, Sequence(x, lengths), noise))
        self.leaves = _leaves(self.missing)

    def run(self, method) -> Tensor:
        """One pass forward and one back by `method`; the loss () without its graph."""
        leaves = self.leaves.values()
        for leaf in leaves:
            leaf.grad = None
        self.change_weights()
        with method.installed():
            loss = self.loss(method)
            loss.backward()
        return loss.detach()

    def loss(self, method) -> Tensor:
        """The loss of all missing modalities, ()."""
        raise NotImplementedError

    def change_weights(self) -> None:
        """Weights are new in every step, so nothing that was made of them before may be used.

        What looks at their versions sees that all changed, and what looks at their bits that two of each network did:
        the first that every sample meets, and the first of its step.
        """
        torch.autograd.graph.increment_version(self.leaves.values())
        for one in self.missing:
            for layer in (one.hddm.denoiser.embed, one.hddm.denoiser.time[0]):
                layer.weight.detach().view(torch.uint8)[0, 0].bitwise_xor_(1)  # the last bit of a number

    def gradients(self) -> dict[str, Tensor]:
        """Those of the last run."""
        return {name: leaf.grad for name, leaf in self.leaves.items() if leaf.grad is not None}

    def double(self) -> "Diffusion":
        """The same in float64."""
        other = copy.copy(self)
        other.missing = [
            one._replace(
                hddm=copy.deepcopy(one.hddm).double(),
                cond=one.cond.detach().double().requires_grad_(),
                truth=Sequence(one.truth.x.double(), one.truth.lengths),
            )
            for one in self.missing
        ]
        other.leaves = _leaves(other.missing)
        return other

    def flop(self) -> int:
        """Useful operations of a run: three times those forward, see `step_flop`."""
        raise NotImplementedError


def _leaves(missing: list[Missing]) -> dict[str, Tensor]:
    """Everything that has a gradient, by name; made once, for a walk through modules is not a part of a step."""
    found = {}
    for i, one in enumerate(missing):
        found |= {f"{i}.{name}": parameter for name, parameter in one.hddm.named_parameters()}
        found[f"{i}.cond"] = one.cond
    return found


class Block(Diffusion):
    """Eq. 3 at a random step of each clip: the whole denoiser once."""

    def loss(self, method) -> Tensor:
        """L_HDDM."""
        requests = [one.hddm.eq3_request(one.truth, one.cond, one.key_mask, one.noise) for one in self.missing]
        return torch.stack(eq3.denoising_losses(requests)).sum()

    def flop(self) -> int:
        """3 x 2 B (step + keys and values of the condition)."""
        return len(self.missing) * self.batch * diffusion_flop(self.preset, 1)


class Chain(Diffusion):
    """The reverse chains of Eq. 2 from noise to x_0, with the gradient through all steps of ||x_0 - x_m||^2."""

    def loss(self, method) -> Tensor:
        """Mean over real tokens and channels, summed over the modalities."""
        requests = [one.hddm.request(one.truth.lengths, one.cond, one.key_mask, one.noise) for one in self.missing]
        drawn = recovery.sample_many(requests, max_memory=method.max_memory(requests))
        return torch.stack(
            [losses.eq4_ur(x_0, one.truth.x, one.truth.mask()) for x_0, one in zip(drawn, self.missing, strict=True)]
        ).sum()

    def flop(self) -> int:
        """3 x 2 B (K steps + keys and values of the condition)."""
        return len(self.missing) * self.batch * diffusion_flop(self.preset, self.missing[0].hddm.steps)


def diffusion_flop(preset: Preset, steps: int) -> int:
    """Useful operations of `steps` passes of one sample forward and back: 3 (steps x `useful_flop` + `condition_flop`).

    A product costs as much again for the gradient of each of its two factors, so the way back is twice the way there.
    """
    return 3 * (steps * useful_flop(preset) + condition_flop(preset))
