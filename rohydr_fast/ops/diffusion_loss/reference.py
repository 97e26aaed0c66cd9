"""Eq. 3, plain: the forward process q at each sample's own step, the network, and the loss of its prediction."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...losses import masked_mean
from .. import philox
from ..conditioning.reference import conditioning
from ..denoiser.reference import DenoiserWeights, Modulation, denoiser
from ..reverse_loop.reference import NoiseKey, log_variance, step_noise

COLUMNS = (
    "signal",  # x_t = signal x_0 + noise eps: sqrt(abar_t), sqrt(1 - abar_t)
    "noise",
    "target_x0",  # the target is target_x0 x_0 + target_eps eps
    "target_eps",
    "mean_x0",  # the mean of q(x_{t-1} | x_t, x_0) is mean_x0 x_0 + mean_xt x_t
    "mean_xt",
    "deviation",  # and its standard deviation this
    "c_x",  # a row of `Schedule.table`
    "c_p",
    "log_beta",
    "log_posterior",
)
"""The columns of the table that Eq. 3 reads, a row for each step."""


class LossTerm(NamedTuple):
    """The arguments of `diffusion_loss`: Eq. 3 of one modality."""

    x_0: Tensor
    rows: Tensor
    position: Tensor
    features: Tensor
    encoded: Tensor
    layer_weights: Sequence[Tensor]
    layer_biases: Sequence[Tensor]
    weights: DenoiserWeights
    noise: NoiseKey
    loss: str
    num_heads: int
    token_mask: Tensor | None = None
    key_mask: Tensor | None = None

    def parameters(self) -> list[Tensor]:
        """Those of the network, and weight and bias of each layer in turn."""
        pairs = zip(self.layer_weights, self.layer_biases, strict=True)
        return [*self.weights.tensors(), *[tensor for pair in pairs for tensor in pair]]


class ForwardSample(NamedTuple):
    """One draw of the forward process for each sample of a batch."""

    rows: Tensor  # (B, 11), see `COLUMNS`
    x_t: Tensor  # (B, T, C)
    mean: Tensor  # (B, T, C) of q(x_{t-1} | x_t, x_0)
    target: Tensor  # (B, T, C) what the network should predict
    x_previous: Tensor | None  # (B, T, C) from q(x_{t-1} | x_t, x_0), where it was drawn


def forward_sample(x_0: Tensor, rows: Tensor, eps: Tensor, eps_previous: Tensor | None) -> ForwardSample:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, then x_{t-1} from q(x_{t-1} | x_t, x_0).

    Args:
        x_0: (B, T, C), normalised.
        rows: (B, 11), see `COLUMNS`.
        eps, eps_previous: (B, T, C) unit normal; without the second there is no x_{t-1}.
    """
    c = _columns(rows)
    x_t = c["signal"] * x_0 + c["noise"] * eps
    mean = c["mean_x0"] * x_0 + c["mean_xt"] * x_t
    x_previous = None if eps_previous is None else mean + c["deviation"] * eps_previous
    return ForwardSample(rows, x_t, mean, c["target_x0"] * x_0 + c["target_eps"] * eps, x_previous)


def eq3(loss: str, sample: ForwardSample, prediction: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Eq. 3 for one modality, mean over real tokens and channels; () tensor.

    ``nll``: as printed, with x_{t-1} drawn from q. ``kl``: the closed form, with the same gradient in expectation
    and less variance. ``hybrid``: mean squared error of the prediction, plus the KL with the mean detached, so
    that it trains sigma alone (improved DDPM).

    Args:
        loss: nll, kl or hybrid.
        prediction, v: (B, T, C) of the network at x_t.
        mask: (B, T) bool, True at real tokens; None is all of them.
    """
    c = _columns(sample.rows)
    mu = c["c_x"] * sample.x_t + c["c_p"] * prediction
    log_var = log_variance(v, c["log_beta"], c["log_posterior"])
    if mask is None:
        mask = torch.ones(prediction.shape[:2], dtype=torch.bool, device=prediction.device)
    if loss == "nll":
        return masked_mean((sample.x_previous - mu) ** 2 / (2 * log_var.exp()) + 0.5 * log_var, mask)
    if loss == "kl":
        return masked_mean(_gaussian_kl(sample.mean, c["log_posterior"], mu, log_var), mask)
    kl = _gaussian_kl(sample.mean, c["log_posterior"], mu.detach(), log_var)
    return masked_mean((prediction - sample.target) ** 2 + kl, mask)


def diffusion_loss(
    x_0: Tensor,
    rows: Tensor,
    position: Tensor,
    features: Tensor,
    encoded: Tensor,
    layer_weights: Sequence[Tensor],
    layer_biases: Sequence[Tensor],
    weights: DenoiserWeights,
    noise: NoiseKey,
    *,
    loss: str,
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    network: Callable = denoiser,
    condition: Callable = conditioning,
) -> Tensor:
    """L_HDDM of one modality (Eq. 3), each sample at its own step; () tensor.

    Args:
        x_0: (B, T, C), normalised.
        rows: (B, 11) of each sample's step, see `COLUMNS`.
        position: (T, W).
        features: (B, D) of each sample's step, or (1, D) for all, in float32 where `x_0` is a half.
        encoded: E (B, S, W).
        layer_weights, layer_biases: 3 + 2 L of each, which make the modulation of the features, and K and V of E: see
            `conditioning.reference`. They are computed in the dtype of the features.
        weights: of the network.
        noise: the key of eps and, for nll, of the noise in x_{t-1}.
        loss: nll, kl or hybrid, see `eq3`.
        token_mask, key_mask: (B, T), (B, S) bool.
        network, condition: what stands for `denoiser` and `conditioning`.
    """
    eps = step_noise(x_0, noise, step=0, stream=philox.Stream.FORWARD)
    previous = step_noise(x_0, noise, step=0, stream=philox.Stream.FORWARD_PREVIOUS) if loss == "nll" else None
    drawn = forward_sample(x_0, rows, eps, previous)
    layers = [[tensor.to(features.dtype) for tensor in tensors] for tensors in (layer_weights, layer_biases)]
    modulation, cond_kv = condition(features, encoded.to(features.dtype), *layers).to(x_0.dtype)
    if len(features) == 1:
        modulation = Modulation(*[part[0] for part in modulation])
    prediction, v = network(
        drawn.x_t,
        position,
        modulation,
        cond_kv,
        weights,
        num_heads=num_heads,
        token_mask=token_mask,
        key_mask=key_mask,
    )
    return eq3(loss, drawn, prediction, v, token_mask)


def _columns(rows: Tensor) -> dict[str, Tensor]:
    """Each column as (B, 1, 1)."""
    return dict(zip(COLUMNS, rows[..., None, None].unbind(1), strict=True))


def _gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    difference = log_var_q - log_var_p
    return 0.5 * ((mean_q - mean_p) ** 2 * torch.exp(-log_var_p) + difference.exp() - difference - 1)
