"""Recovery by a score-based generator with cross-attention."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ... import losses
from ...config import ModelConfig
from ...diffusion.sampler import SampleRequest
from ...diffusion.schedule import ReverseTable
from ...modalities import MODALITIES
from ...ops import philox
from ...ops.reverse_loop import NoiseKey
from ...ops.reverse_loop.reference import step_noise
from ..sequences import Sequence, token_mask, zero_padding
from .base import Condition, Sequences, Supervision
from .chained import ChainRecovery, Drawn, Requests
from .conditioned import ids_of, make_denoiser
from .normalised import NormalisedRecovery

SIGMA = 25.0
"""Of the noise g(t) = SIGMA^t, IMDer's."""

LEAST_STEPS = 20
"""Below this the Euler-Maruyama steps near t = 0 overshoot: a step takes off g^2 dt / std^2 times the noise."""


@dataclass(frozen=True)
class VarianceExploding:
    """dx = SIGMA^t dw for t in 0..1, in units in which a reverse loop can run it.

    x_t = x_0 + std(t) eps has a deviation of up to 10, so the network reads y = x / scale(t), scale = sqrt(1 + std^2),
    which is unit for unit data. A step of Euler-Maruyama is linear in y, in the network's eps and in fresh noise, so it
    is a row of the same table as a step of Eq. 2.
    """

    levels: int = 1000  # the network is told round(levels t)

    def std(self, t: np.ndarray) -> np.ndarray:
        """Deviation of the noise in x_t, for t in 0..1."""
        return np.sqrt((SIGMA ** (2 * t) - 1) / (2 * math.log(SIGMA)))

    def table(self, steps: int, *options) -> ReverseTable:
        """Euler-Maruyama from t = 1 to 0 in `steps` equal steps; without noise in the last, as usual.

        x' = x - g^2 dt / std eps + g sqrt(dt) z, in units of y. There are no options: eps, ancestral.
        """
        t = np.arange(1, steps + 1) / steps
        std, scale, scale_after = self.std(t), self._scale(t), self._scale(t - 1 / steps)
        g = SIGMA**t
        log_variance = 2 * np.log(g * math.sqrt(1 / steps) / scale_after)
        rows = np.stack([scale / scale_after, -(g**2) / steps / (std * scale_after), log_variance, log_variance], 1)
        timesteps = torch.from_numpy(np.round(t * self.levels).astype(np.int64))
        return ReverseTable(timesteps, torch.from_numpy(rows.astype(np.float32)))

    def _scale(self, t: np.ndarray) -> np.ndarray:
        return np.sqrt(1 + self.std(t) ** 2)


class ScoreRecovery(NormalisedRecovery, ChainRecovery):
    """imder-style: a score-based generator for each modality, conditioned by cross-attention (the idea of IMDer).

    Kept: a variance-exploding SDE with sigma = 25, denoising score matching, Euler-Maruyama without a gradient, a
    reconstructor behind it. Left out: the one-dimensional U-Net (RoHyDR's denoiser stands for it, so that only the
    process differs), noise on the condition, frozen extractors trained before. This is not IMDer's program.
    """

    divides = True
    term = "L_score"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.denoiser = nn.ModuleDict({m: make_denoiser(config) for m in config.modalities})
        self.process, self.steps = VarianceExploding(), max(config.chain_steps, LEAST_STEPS)

    @torch.no_grad()
    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """A sample (R, T, C) of the reverse SDE, by one call of the reverse loop; no gradient."""
        return super().recover(conditions, sample_ids, seed=seed)

    def requests(
        self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, grad_steps: int | None = None
    ) -> Requests:
        """See `ChainRecovery.requests`."""
        requests = {}
        for m, condition in conditions.items():
            tokens, key_mask = condition.encoded
            requests[m, 0] = SampleRequest(
                self.denoiser[m], tokens, key_mask=key_mask, token_mask=condition.mask(), schedule=self.process,
                steps=self.steps, noise=NoiseKey(seed, ids_of(condition, sample_ids), MODALITIES.index(m)),
            )  # fmt: skip
        return requests

    def finished(self, conditions: dict[str, Condition], drawn: Drawn) -> Sequences:
        """See `ChainRecovery.finished`."""
        found = {}
        for (m, _), x in drawn.items():
            lengths = conditions[m].lengths
            found[m] = Sequence(zero_padding(self.norm[m].inverse(x), token_mask(lengths, x.shape[1])), lengths)
        return found

    def loss(self, given: Supervision) -> Tensor:
        """Denoising score matching, weighted by the variance: the squared error of eps at a random t."""
        total = super().loss(given)
        for target in given.targets():
            m, condition, truth = target[:3]
            noise = NoiseKey(given.seed, ids_of(condition, given.sample_ids), MODALITIES.index(m))
            x_0 = self.norm[m](truth.x.detach())
            u = philox.uniform(
                noise.seed, noise.sample_ids, modality=noise.modality, stream=philox.Stream.TIME, count=1
            )
            level = (u[:, 0] * self.process.levels).long() + 1
            std = torch.from_numpy(self.process.std(level.numpy() / self.process.levels)).to(x_0)[:, None, None]
            eps = step_noise(x_0, noise, step=0, stream=philox.Stream.FORWARD)
            y = (x_0 + std * eps) / torch.sqrt(1 + std**2)
            mask = truth.mask()
            predicted, _ = self.denoiser[m](
                y, level.to(y.device), condition.encoded.tokens, mask, condition.encoded.key_mask
            )
            total = total + target.mean(losses.eq4_ur(predicted, eps, mask))
        return total
