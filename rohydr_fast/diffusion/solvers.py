"""Samplers as tables of coefficients: what a reverse loop does with x, the network's prediction and a history.

Between two networks every sampler here is linear, so one loop runs them all:

    x' = c_x x + c_p p + c_xh h + sigma z        h' = c_hx x + c_hp p + c_hh h

p is the network's prediction, h one tensor of the size of x that starts as 0, z fresh noise. A row of the table is
(c_x, c_p, log variance, log variance) and, where there is a history, (c_xh, c_hx, c_hp, c_hh) after it. Eq. 2 learns
its variance between two bounds, which stand in the third and fourth column; a solver has the same number in both.

Below, alpha = sqrt(abar), sigma = sqrt(1 - abar), lambda = log(alpha / sigma), of the step itself and of the one after
it, where the last leads to alpha = 1, sigma = 0. All is computed in float64.
"""

from typing import NamedTuple

import numpy as np

SILENT = -1e4
"""The log of a variance that is 0: finite, as tables must be, and exp(SILENT / 2) is 0 in every dtype."""


class Linear(NamedTuple):
    """Rows of x' = of_x x + of_p p, (K,) each."""

    of_x: np.ndarray
    of_p: np.ndarray


def solver_rows(abar: np.ndarray, abar_after: np.ndarray, prediction: str, sampler: str, eta: float) -> np.ndarray:
    """The table (K, 4) of ddim, or (K, 8) of a sampler with a history; row i - 1 belongs to step i.

    Args:
        abar: (K,) at the steps, falling with the row.
        abar_after: (K,) at the step that each leads to; 1 for the first row, which is the last step.
        prediction: what the network predicts: eps, v or x0.
    """
    x_0, eps = _data(abar, prediction), _noise(abar, prediction)
    if sampler == "ddim":
        return _ddim(abar, abar_after, x_0, eps, eta)
    return {"dpm++2m": _dpm_plus_plus, "unipc": _unipc}[sampler](abar, abar_after, x_0)


def _data(abar: np.ndarray, prediction: str) -> Linear:
    """x_0 as the network has it."""
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    return {
        "eps": Linear(1 / alpha, -sigma / alpha),
        "v": Linear(alpha, -sigma),
        "x0": Linear(np.zeros_like(alpha), np.ones_like(alpha)),
    }[prediction]


def _noise(abar: np.ndarray, prediction: str) -> Linear:
    """eps as the network has it."""
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    return {
        "eps": Linear(np.zeros_like(alpha), np.ones_like(alpha)),
        "v": Linear(sigma, alpha),
        "x0": Linear(1 / sigma, -alpha / sigma),
    }[prediction]


def _ddim(abar: np.ndarray, abar_after: np.ndarray, x_0: Linear, eps: Linear, eta: float) -> np.ndarray:
    """DDIM (Song et al. 2021, Eq. 12 and 16): x' = alpha' x_0 + sqrt(sigma'^2 - s^2) eps + s z.

    s = eta times the deviation of the posterior; eta = 1 is Eq. 2 with the smaller of its two variances.
    """
    variance = eta**2 * (1 - abar_after) / (1 - abar) * (1 - abar / abar_after)
    along_x_0, along_eps = np.sqrt(abar_after), np.sqrt(1 - abar_after - variance)
    log_variance = np.full_like(variance, SILENT)
    np.log(variance, out=log_variance, where=variance > 0)
    of_x = along_x_0 * x_0.of_x + along_eps * eps.of_x
    of_p = along_x_0 * x_0.of_p + along_eps * eps.of_p
    return np.stack([of_x, of_p, log_variance, log_variance], 1)


def _dpm_plus_plus(abar: np.ndarray, abar_after: np.ndarray, x_0: Linear) -> np.ndarray:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): the history is the x_0 of the step before.

    x' = (sigma'/sigma) x - alpha' (e^-h - 1) ((1 + 1/2r) x_0 - 1/2r x_0_before), with h = lambda' - lambda and
    r = h_before / h.
    The first and the last step are of first order: there is no step before, and no lambda' to the end.
    """
    alpha_after, ratio, decay, h = _exponentials(abar, abar_after)
    weight = np.zeros_like(h)  # 1 / 2 r
    weight[1:-1] = h[1:-1] / (2 * h[2:])  # row i follows row i + 1
    gain = -alpha_after * decay
    of_x_0, of_history = gain * (1 + weight), -gain * weight
    zeros = np.zeros_like(gain)
    c_x, c_p = ratio + of_x_0 * x_0.of_x, of_x_0 * x_0.of_p
    return _with_history(c_x, c_p, of_history, x_0.of_x, x_0.of_p, zeros)


def _unipc(abar: np.ndarray, abar_after: np.ndarray, x_0: Linear) -> np.ndarray:
    """UniPC of order 1 with B(h) = e^h - 1 (Zhao et al. 2023): predictor and corrector, together of second order.

    The x that the network reads is predicted, u -> x' = (sigma'/sigma) u - alpha' (e^-h - 1) x_0; once the network has
    answered, the corrector takes the mean of both answers, u' = (sigma'/sigma) u - alpha' (e^-h - 1) (x_0 + x_0') / 2.
    The history is the part of u' that is known before the answer. Order 2 would need two histories.
    """
    alpha_after, ratio, decay, _ = _exponentials(abar, abar_after)
    gain = -alpha_after * decay
    correction = np.zeros_like(gain)
    correction[:-1] = gain[1:] / 2  # of the step before, whose end this step is
    first = np.zeros_like(gain)  # where nothing is corrected yet, u is x
    first[-1] = 1
    known = 1 - first
    # u = first x + known h + correction x_0
    of_history = ratio * known
    of_x_0, of_x_0_known = ratio * correction + gain, ratio * correction + gain / 2
    c_x, c_p = ratio * first + of_x_0 * x_0.of_x, of_x_0 * x_0.of_p
    h_x, h_p = ratio * first + of_x_0_known * x_0.of_x, of_x_0_known * x_0.of_p
    return _with_history(c_x, c_p, of_history, h_x, h_p, of_history)


def _exponentials(abar: np.ndarray, abar_after: np.ndarray) -> tuple[np.ndarray, ...]:
    """alpha', sigma' / sigma, e^-h - 1 and h, which is infinite for the last step."""
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    alpha_after, sigma_after = np.sqrt(abar_after), np.sqrt(1 - abar_after)
    shrink = sigma_after * alpha / (sigma * alpha_after)  # e^-h
    with np.errstate(divide="ignore"):
        h = -np.log(shrink)
    return alpha_after, sigma_after / sigma, shrink - 1, h


def _with_history(c_x, c_p, c_xh, c_hx, c_hp, c_hh) -> np.ndarray:
    silent = np.full_like(c_x, SILENT)
    return np.stack([c_x, c_p, silent, silent, c_xh, c_hx, c_hp, c_hh], 1)
