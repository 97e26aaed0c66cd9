"""The forward process q and the training loss of the denoiser, Eq. 3."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import LOSSES
from ..errors import UsageError
from ..losses import masked_mean
from ..ops.reverse_loop.reference import log_variance
from .schedule import Schedule


@dataclass(frozen=True)
class ForwardSample:
    """One draw of the forward process for each sample of a batch."""

    t: Tensor  # (B,) int64, 1..N
    x_t: Tensor  # (B, T, C)
    x_previous: Tensor  # (B, T, C) from q(x_{t-1} | x_t, x_0)
    mean: Tensor  # (B, T, C) mean of that distribution
    target: Tensor  # (B, T, C) what the network should predict


class DiffusionProcess:
    """q(x_t | x_0), its posterior, and Eq. 3, over all N steps of a schedule."""

    def __init__(self, schedule: Schedule, prediction: str = "eps", loss: str = "hybrid"):
        if loss not in LOSSES:
            raise UsageError(f"diffusion loss: must be one of {', '.join(LOSSES)}, got {loss!r}.")
        self.schedule, self.prediction, self.loss = schedule, prediction, loss
        self._rows = schedule.table(schedule.num_steps, prediction).coefficients  # (N, 4)
        abar = torch.from_numpy(schedule.alphas_bar)
        alpha, beta = abar[1:] / abar[:-1], 1 - abar[1:] / abar[:-1]
        self._abar = abar[1:].float()  # (N,)
        # mean of q(x_{t-1} | x_t, x_0) = c_0 x_0 + c_t x_t; its variance is exactly 0 at t = 1.
        self._posterior = torch.stack(
            [
                abar[:-1].sqrt() * beta / (1 - abar[1:]),
                alpha.sqrt() * (1 - abar[:-1]) / (1 - abar[1:]),
                (beta * (1 - abar[:-1]) / (1 - abar[1:])).sqrt(),
            ],
            1,
        ).float()  # (N, 3): c_0, c_t, standard deviation

    def sample(self, x_0: Tensor, t: Tensor, eps: Tensor, eps_previous: Tensor) -> ForwardSample:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, then x_{t-1} from q(x_{t-1} | x_t, x_0).

        Args:
            x_0: (B, T, C), normalised.
            t: (B,) int64 in 1..N.
            eps, eps_previous: (B, T, C) unit normal.
        """
        abar = self._abar.to(x_0)[t - 1].view(-1, 1, 1)
        x_t = abar.sqrt() * x_0 + (1 - abar).sqrt() * eps
        c_0, c_t, deviation = self._posterior.to(x_0)[t - 1].unbind(1)
        mean = c_0.view(-1, 1, 1) * x_0 + c_t.view(-1, 1, 1) * x_t
        x_previous = mean + deviation.view(-1, 1, 1) * eps_previous
        target = {"eps": eps, "v": abar.sqrt() * eps - (1 - abar).sqrt() * x_0, "x0": x_0}[self.prediction]
        return ForwardSample(t, x_t, x_previous, mean, target)

    def eq3_loss(self, sample: ForwardSample, prediction: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Eq. 3 for one modality, mean over real tokens and channels; () tensor.

        ``nll``: as printed, with x_{t-1} drawn from q. ``kl``: the closed form, with the same gradient in expectation
        and less variance. ``hybrid``: mean squared error of the prediction, plus the KL with the mean detached, so
        that it trains sigma alone (improved DDPM).

        Args:
            prediction, v: (B, T, C) of the network at x_t.
            mask: (B, T) bool, True at real tokens.
        """
        c_x, c_p, log_beta, log_posterior = self._rows.to(prediction)[sample.t - 1].view(-1, 4, 1, 1).unbind(1)
        mu = c_x * sample.x_t + c_p * prediction
        log_var = log_variance(v, log_beta, log_posterior)
        if self.loss == "nll":
            return masked_mean((sample.x_previous - mu) ** 2 / (2 * log_var.exp()) + 0.5 * log_var, mask)
        if self.loss == "kl":
            return masked_mean(_gaussian_kl(sample.mean, log_posterior, mu, log_var), mask)
        kl = _gaussian_kl(sample.mean, log_posterior, mu.detach(), log_var)
        return masked_mean((prediction - sample.target) ** 2 + kl, mask)


def _gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    difference = log_var_q - log_var_p
    return 0.5 * ((mean_q - mean_p) ** 2 * torch.exp(-log_var_p) + difference.exp() - difference - 1)
