"""The noise schedule and its tables, computed in float64 and stored in float32.

Steps run 1..N; beta_t rises, alpha_t = 1 - beta_t, abar_t = alpha_1 ... alpha_t, abar_0 = 1. A chain of K <= N steps
visits t_1 < ... < t_K = N with alpha_eff = abar_t / abar_s, s the step before.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from ..config import PREDICTIONS, check_betas, check_sampler
from ..errors import UsageError
from .solvers import solver_rows


@dataclass(frozen=True)
class ReverseTable:
    """What a chain of K steps reads, in ascending order: row i - 1 belongs to step i."""

    timesteps: Tensor  # (K,) int64, values in 1..N
    coefficients: Tensor  # (K, 4) float32: c_x, c_p, log beta, log btilde; (K, 8) with a history: see `solvers`

    def to(self, device: torch.device) -> "ReverseTable":
        """The same table on another device."""
        return ReverseTable(self.timesteps.to(device), self.coefficients.to(device))


@dataclass(frozen=True)
class Schedule:
    """A linear schedule of N steps from `beta_start` to `beta_end` (DDPM's)."""

    num_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UsageError(f"schedule: num_steps must be at least 1, got {self.num_steps}. DDPM uses 1000.")
        check_betas(self.beta_start, self.beta_end)

    @cached_property
    def betas(self) -> np.ndarray:
        """beta_1 .. beta_N, (N,) float64."""
        return np.linspace(self.beta_start, self.beta_end, self.num_steps)

    @cached_property
    def alphas_bar(self) -> np.ndarray:
        """abar_0 .. abar_N, (N + 1,) float64; abar_0 = 1."""
        return np.concatenate([[1.0], np.cumprod(1 - self.betas)])

    def timesteps(self, steps: int) -> np.ndarray:
        """t_1 < ... < t_K = N, evenly spaced from the noisy end ("trailing" in diffusers), (K,) int64.

        Raises:
            UsageError: K outside 1..N.
        """
        if not 1 <= steps <= self.num_steps:
            raise UsageError(
                f"schedule: steps must be between 1 and the {self.num_steps} training steps, got {steps}. "
                "Choose fewer steps or a longer schedule."
            )
        return np.round(self.num_steps - np.arange(steps)[::-1] * (self.num_steps / steps)).astype(np.int64)

    def table(self, steps: int, prediction: str = "eps", sampler: str = "ancestral", eta: float = 0.0) -> ReverseTable:
        """The coefficients for a chain of K steps: of Eq. 2 ("ancestral"), or of a sampler of `diffusion.solvers`.

        Eq. 2 read literally, with one gamma in both places, diverges (docs/deviations.md). The mean that is right is
        DDPM's, mu = (x_t - beta / sqrt(1 - abar_t) eps) / sqrt(alpha), linear in x_t and in the network's prediction:
        mu = c_x x_t + c_p prediction, whether it predicts eps, v = sqrt(abar) eps - sqrt(1 - abar) x_0, or x_0.
        btilde = beta (1 - abar_s) / (1 - abar_t), which is 0 at the first step, is replaced there by the second's.

        Raises:
            UsageError: an unknown prediction or sampler, K outside 1..N, an eta outside 0..1 or without ddim.
        """
        timesteps, rows = _table(self, steps, prediction, sampler, eta)
        # from_numpy: on the CPU, also where somebody else's `torch.device` context asks for another device
        return ReverseTable(torch.from_numpy(timesteps.copy()), torch.from_numpy(rows.copy()))


@lru_cache(maxsize=64)  # every call of a sampler asks, and the answer takes longer than a small network's step
def _table(schedule: Schedule, steps: int, prediction: str, sampler: str, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """`Schedule.table` as read-only arrays."""
    if prediction not in PREDICTIONS:
        raise UsageError(f"schedule: prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}.")
    check_sampler(sampler, eta)
    t = schedule.timesteps(steps)
    abar, abar_before = schedule.alphas_bar[t], schedule.alphas_bar[np.concatenate([[0], t[:-1]])]
    rows = (
        _ancestral_rows(abar, abar_before, prediction)
        if sampler == "ancestral"
        else solver_rows(abar, abar_before, prediction, sampler, eta)
    )
    arrays = t, rows.astype(np.float32)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def _ancestral_rows(abar: np.ndarray, abar_before: np.ndarray, prediction: str) -> np.ndarray:
    """Eq. 2, see `Schedule.table`."""
    alpha = abar / abar_before
    beta = 1 - alpha
    posterior = beta * (1 - abar_before) / (1 - abar)
    posterior[0] = posterior[1] if len(posterior) > 1 else beta[0]
    c_x, c_eps = 1 / np.sqrt(alpha), -beta / np.sqrt((1 - abar) * alpha)
    if prediction == "v":  # eps = sqrt(abar) v + sqrt(1 - abar) x_t
        c_x, c_p = c_x + c_eps * np.sqrt(1 - abar), c_eps * np.sqrt(abar)
    elif prediction == "x0":  # eps = (x_t - sqrt(abar) x_0) / sqrt(1 - abar)
        c_x, c_p = c_x + c_eps / np.sqrt(1 - abar), -c_eps * np.sqrt(abar / (1 - abar))
    else:
        c_p = c_eps
    return np.stack([c_x, c_p, np.log(beta), np.log(posterior)], 1)
