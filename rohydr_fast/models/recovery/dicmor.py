"""Recovery by class-conditional normalizing flows."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import ModelConfig
from ...losses import class_of, masked_mean
from ..sequences import Sequence, zero_padding
from .base import Condition, Sequences, Supervision
from .normalised import NormalisedRecovery

FLOW_STEPS = 4
"""For each modality; DiCMoR has 32, on whole sequences."""

CLASSES = 7
"""Of the prior: the labels -3..3."""

LARGEST_LOG_SCALE = 2.0
"""Of a coupling, so that no step of the inverse multiplies by more than e^2."""


class FlowStep(nn.Module):
    """An invertible mixture of channels, then an affine coupling whose scale is bounded; on each token alone."""

    def __init__(self, channels: int, width: int, generator: torch.Generator):
        super().__init__()
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels, generator=generator))[0])
        self.bias, self.log_scale = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
        self.enter, self.leave = nn.Linear(channels // 2, width), nn.Linear(width, channels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.unmix: Tensor | None = None  # of a frozen step, the inverse of `mix`

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., C) to the latent (..., C), and the log-determinant (...)."""
        x = (x + self.bias) * self.log_scale.exp() @ self.mix.T
        kept, moved = x.chunk(2, -1)
        log_scale, shift = self._coupling(kept)
        constant = self.log_scale.sum() + torch.linalg.slogdet(self.mix)[1]
        return torch.cat([kept, (moved + shift) * log_scale.exp()], -1), constant + log_scale.sum(-1)

    def inverse(self, z: Tensor) -> Tensor:
        """The latent (..., C) to x (..., C)."""
        kept, moved = z.chunk(2, -1)
        log_scale, shift = self._coupling(kept)
        x = torch.cat([kept, moved * (-log_scale).exp() - shift], -1)
        if self.unmix is None:
            x = torch.linalg.solve(self.mix, x.flatten(0, -2).T).T.view_as(x)
        else:
            x = x @ self.unmix.T
        return x * (-self.log_scale).exp() - self.bias

    def _coupling(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.leave(F.gelu(self.enter(kept))).chunk(2, -1)
        return LARGEST_LOG_SCALE * torch.tanh(log_scale / LARGEST_LOG_SCALE), shift


class Flow(nn.Module):
    """An invertible map between a token of a representation and its latent."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        # Of its own, on the CPU: the model's shapes are also asked for on the meta device, where no number is drawn.
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, (), device="cpu")))
        self.steps = nn.ModuleList(FlowStep(channels, width, generator) for _ in range(FLOW_STEPS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., C) to the latent (..., C), and the log-determinant of the Jacobian (...)."""
        log_det = x.new_zeros(x.shape[:-1])
        for step in self.steps:
            x, more = step(x)
            log_det = log_det + more
        return x, log_det

    def inverse(self, z: Tensor) -> Tensor:
        """The latent (..., C) to x (..., C)."""
        for step in reversed(self.steps):
            z = step.inverse(z)
        return z


class FlowRecovery(NormalisedRecovery):
    """dicmor-style: a normalizing flow for each modality into one latent space with a Gaussian for each class, through
    which available modalities become a missing one (the idea of DiCMoR).

    Kept: flows trained by likelihood with class-conditional priors that all modalities share, recovery by the inverse
    flow of the available latents, detached. Left out: Glow's size and squeezing of time, frozen extractors. The prior
    serves training alone: at test time no label is known. This is not DiCMoR's program.
    """

    term = "L_flow"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.flow = nn.ModuleDict({m: Flow(config.channels, config.width) for m in config.modalities})
        self.prior_mean = nn.Parameter(torch.randn(CLASSES, config.channels) * 0.1)

    @torch.no_grad()
    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """The mean latent of what is available, through the inverse flow, (R, T, C); no gradient."""
        found = {}
        for m, condition in conditions.items():
            mask = condition.mask()
            latent, count = 0, 0
            for n, sequence in condition.others.items():
                has = (condition.available[n] & (sequence.lengths > 0))[:, None, None]
                normal = Sequence(self.norm[n](sequence.x), sequence.lengths)
                resampled = resample(normal, condition.lengths, mask.shape[1])
                latent = latent + torch.where(has, self.flow[n](resampled)[0], 0)
                count = count + has.to(resampled)
            x = self.norm[m].inverse(self.flow[m].inverse(latent / count.clamp(min=1)))
            found[m] = Sequence(zero_padding(x, mask), condition.lengths)
        return found

    @torch.no_grad()
    def freeze(self) -> None:
        """Invert the mixtures of channels: an exported graph solves no equations."""
        for flow in self.flow.values():
            for step in flow.steps:
                step.unmix = torch.linalg.inv(step.mix)

    def loss(self, given: Supervision) -> Tensor:
        """Negative log-likelihood a channel of all ground truth of the batch, each clip under its class's prior."""
        total = super().loss(given)
        mean = self.prior_mean[class_of(given.label, CLASSES)][:, None]  # (B, 1, C)
        for m, sequence in given.sequences.items():
            latent, log_det = self.flow[m](self.norm[m](sequence.x.detach()))
            channels = latent.shape[-1]
            squares = 0.5 * ((latent - mean) ** 2).mean(-1) + 0.5 * math.log(2 * math.pi)
            total = total + masked_mean(squares - log_det / channels, sequence.mask())
        return total


def resample(sequence: Sequence, lengths: Tensor, tokens: int | None = None) -> Tensor:
    """(B, T, C) with `lengths` tokens each: token i is token floor(i old / new) of before.

    T is `tokens`, by default that of the longest.
    """
    tokens = int(lengths.max()) if tokens is None else tokens
    i = torch.arange(tokens, device=lengths.device) * sequence.lengths[:, None] // lengths.clamp(min=1)[:, None]
    i = torch.minimum(i, (sequence.lengths - 1).clamp(min=0)[:, None])
    return sequence.x.gather(1, i[..., None].expand(-1, -1, sequence.x.shape[-1]))
