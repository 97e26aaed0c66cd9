"""The forward process q and the training loss of the denoiser, Eq. 3, over all N steps of a schedule."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..config import LOSSES
from ..errors import UsageError
from ..ops.diffusion_loss import ForwardSample, LossTerm, NoiseKey, diffusion_losses
from ..ops.diffusion_loss.reference import eq3, forward_sample
from .schedule import Schedule


class DiffusionProcess:
    """q(x_t | x_0), its posterior, and Eq. 3, for a network that predicts eps, v or x0."""

    def __init__(self, schedule: Schedule, prediction: str = "eps", loss: str = "hybrid"):
        if loss not in LOSSES:
            raise UsageError(f"diffusion loss: must be one of {', '.join(LOSSES)}, got {loss!r}.")
        self.schedule, self.prediction, self.loss = schedule, prediction, loss
        abar = schedule.alphas_bar
        now, before = abar[1:], abar[:-1]
        alpha, beta = now / before, 1 - now / before
        signal, noise = np.sqrt(now), np.sqrt(1 - now)
        zeros, ones = np.zeros_like(now), np.ones_like(now)
        target = {"eps": (zeros, ones), "v": (-noise, signal), "x0": (ones, zeros)}[prediction]
        posterior = (  # of q(x_{t-1} | x_t, x_0); its variance is exactly 0 at t = 1
            np.sqrt(before) * beta / (1 - now),
            np.sqrt(alpha) * (1 - before) / (1 - now),
            np.sqrt(beta * (1 - before) / (1 - now)),
        )
        of_q = torch.from_numpy(np.stack([signal, noise, *target, *posterior], 1)).float()
        self._rows = torch.cat([of_q, schedule.table(schedule.num_steps, prediction).coefficients], 1)  # (N, 11)

    def rows(self, t: Tensor, like: Tensor) -> Tensor:
        """What Eq. 3 reads of the steps `t` (B,), values 1..N: (B, 11) with the dtype and device of `like`."""
        return self._rows.to(like)[t - 1]

    def sample(self, x_0: Tensor, t: Tensor, eps: Tensor, eps_previous: Tensor | None = None) -> ForwardSample:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, then x_{t-1} from q(x_{t-1} | x_t, x_0).

        Args:
            x_0: (B, T, C), normalised.
            t: (B,) int64 in 1..N.
            eps, eps_previous: (B, T, C) unit normal; without the second there is no x_{t-1}.
        """
        return forward_sample(x_0, self.rows(t, x_0), eps, eps_previous)

    def eq3_loss(self, sample: ForwardSample, prediction: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Eq. 3 for one modality, see `ops.diffusion_loss.reference.eq3`."""
        return eq3(self.loss, sample, prediction, v, mask)


class DenoisingRequest(NamedTuple):
    """Eq. 3 of one modality, as `denoising_losses` takes it."""

    process: DiffusionProcess
    denoiser: nn.Module
    """A `models.denoiser.Denoiser`."""
    x_0: Tensor
    """(B, T, C), normalised."""
    t: Tensor
    """(B,) int64 in 1..N."""
    encoded: Tensor
    """(B, S, W) condition, from `models.condition.ConditionEncoder`."""
    noise: NoiseKey
    """The key of the noise in x_t and x_{t-1}."""
    token_mask: Tensor | None = None
    """(B, T) bool, True at real tokens."""
    key_mask: Tensor | None = None
    """(B, S) bool, True where the condition has a key."""


def denoising_losses(requests: Sequence[DenoisingRequest], *, backend: str | None = None) -> list[Tensor]:
    """Eq. 3 of several modalities at once: the loss () of each denoiser at x_t of each sample's step.

    In the wider dtype of a request's `x_0`, `encoded` and denoiser, also under `torch.autocast`.

    Args:
        backend: see `rohydr_fast.explain`.

    Raises:
        UsageError: a shape or dtype that does not fit.
        BackendUnavailable: the named backend cannot run this call.

    Cost: on "cpp" one native call for all, with all of its gradients.
    """
    return diffusion_losses([_term(request) for request in requests], backend=backend)


def _term(request: DenoisingRequest) -> LossTerm:
    process, denoiser, x_0, t, encoded, noise, token_mask, key_mask = request
    weights = denoiser.weights()
    dtype = torch.promote_types(torch.promote_types(x_0.dtype, encoded.dtype), weights.in_weight.dtype)
    x_0 = x_0.to(dtype)
    return LossTerm(
        x_0,
        process.rows(t, x_0),
        denoiser.position(x_0.shape[1]).to(dtype),
        denoiser.time_features(t, x_0),
        encoded.to(dtype),
        *denoiser.conditioning_layers(),
        weights,
        noise,
        process.loss,
        denoiser.num_heads,
        token_mask,
        key_mask,
    )
