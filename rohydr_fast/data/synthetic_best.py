"""The population that the synthetic data are drawn from, and the best predictor it allows.

One clip is drawn like this (m = a, t, v; L steps of D channels; tau = (step + 1/2) / L):

    z        ~ N(0, I_4)                                  the shared cause
    y*       = w . z + e,  e ~ N(0, LABEL_NOISE^2);       label y = clip(y*, -3, 3), rounded to a grid
    u_m      = [A_m z + n_m, s_m],  n_m, s_m ~ N(0, I)    cues of modality m, and the clip's "speaker" factors
    x_m[l]   = sum_j b_j(tau_l) U_mj u_m + r_m[l]         r_m: AR(1) along the steps, unit variance, per channel
    o_m      = scale * f_m(x_m)                           what the file holds; f_m is strictly increasing

n_m is why more steps or channels do not make a modality arbitrarily good: it cannot be told from z in m alone.
Given f_m^-1(o_m) everything is jointly Gaussian, so p(y | any set of modalities) is known in closed form.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from ..modalities import MODALITIES, parse_available
from .mapping import release

LATENTS = ("core", "verbal", "vocal", "facial")
LABEL_WEIGHTS = np.array([1.10, 0.84, 0.46, 0.46])
LABEL_NOISE = 0.45
SPEAKERS = 5
CUE_SHARES = np.array([0.15, 0.45, 0.40])
"""Share of the signal's power that each of the three temporal patterns carries (mean, half wave, full wave)."""
SPEAKER_SHARES = np.array([0.50, 0.25, 0.25])
POPULATION_SEED = 20260117
_BLOCK = 256


@dataclass(frozen=True)
class Observation:
    """How one modality shows the cause: A_m = diag(strengths); powers are relative to the noise of one element."""

    strengths: tuple[float, float, float, float]
    signal: float
    speaker: float
    correlation: float  # of neighbouring steps of the noise
    scale: float
    spread: float  # standard deviation of the channels' log scale


OBSERVATIONS: Mapping[str, Observation] = {
    "a": Observation((0.70, 0.35, 1.60, 0.0), signal=1.0, speaker=0.7, correlation=0.7, scale=8.0, spread=1.0),
    "t": Observation((2.50, 2.50, 0.40, 0.40), signal=0.22, speaker=0.5, correlation=0.3, scale=0.4, spread=0.2),
    "v": Observation((0.70, 0.35, 0.0, 1.60), signal=0.7, speaker=0.7, correlation=0.8, scale=1.5, spread=0.5),
}

# Strictly increasing maps: heavy tails for audio, rectified for text, non-negative intensities for vision.
_FORWARD = {
    "a": lambda x: 4.0 * np.sinh(0.25 * x),
    "t": lambda x: np.maximum(x, 0.35 * x),
    "v": lambda x: np.log1p(np.exp(x)),
}
_INVERSE = {
    "a": lambda o: 4.0 * np.arcsinh(0.25 * o),
    "t": lambda o: np.minimum(o, o / 0.35),
    "v": lambda o: np.log(np.expm1(o)),
}


class Population:
    """The fixed parameters for given feature dimensions; the seed of a data set does not change them.

    `loadings[m]` is U_m, (3, D, 7) float64: pattern, channel, [cues, speaker factors]; `scales[m]` is (D,) float64.
    """

    def __init__(self, dims: Mapping[str, int], label_grid: int = 5):
        self.dims = dict(dims)
        self.label_grid = label_grid
        self.loadings, self.scales = {}, {}
        cues = len(LATENTS)
        for index, m in enumerate(MODALITIES):
            seen, dim = OBSERVATIONS[m], self.dims[m]
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([POPULATION_SEED, index, dim])))
            power = np.concatenate(
                [
                    np.repeat((seen.signal**2 * CUE_SHARES / cues)[:, None], cues, 1),
                    np.repeat((seen.speaker**2 * SPEAKER_SHARES / SPEAKERS)[:, None], SPEAKERS, 1),
                ],
                axis=1,
            )  # (3, 7)
            self.loadings[m] = rng.standard_normal((3, dim, cues + SPEAKERS)) * np.sqrt(power)[:, None, :]
            self.scales[m] = seen.scale * np.exp(seen.spread * rng.standard_normal(dim))

    def mixing(self, m: str) -> np.ndarray:
        """[A_m; 0], (7, 4): the mean of u_m is this times z, its covariance given z is the identity."""
        return np.concatenate([np.diag(OBSERVATIONS[m].strengths), np.zeros((SPEAKERS, len(LATENTS)))])

    def observe(self, m: str, x: np.ndarray) -> np.ndarray:
        """Features from the Gaussian x, (..., D): scale * f_m(x)."""
        return _FORWARD[m](x) * self.scales[m].astype(x.dtype)

    def invert(self, m: str, features: np.ndarray) -> np.ndarray:
        """The Gaussian x behind features, (..., D) float64; exact but for the rounding of the features."""
        return _INVERSE[m](features.astype(np.float64) / self.scales[m])

    def grid(self) -> np.ndarray:
        """All values a label can take, ascending, (6 label_grid + 1,) float64."""
        return np.arange(-3 * self.label_grid, 3 * self.label_grid + 1) / self.label_grid

    def information(
        self, m: str, features: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What modality m of each clip says about z, in information form: precision (N, 4, 4) and shift (N, 4).

        The likelihood of z is proportional to exp(-z' precision z / 2 + shift' z). With u_m integrated out by the
        Woodbury identity the largest system solved is 7 x 7, whatever T and D. A clip of length 0 gives zeros.
        """
        loadings, mixing = self.loadings[m], self.mixing(m)
        patterns, dim, factors = loadings.shape
        flat = loadings.reshape(patterns * dim, factors)
        gram = np.einsum("jdk,ide->jike", loadings, loadings)  # sums over channels: the Kronecker structure
        precision = np.empty((len(lengths), len(LATENTS), len(LATENTS)))
        shift = np.empty((len(lengths), len(LATENTS)))
        for first in range(0, len(lengths), _BLOCK):
            rows = slice(first, first + _BLOCK)
            block = np.asarray(features[rows])
            basis, real = temporal_basis(starts[rows], lengths[rows], block.shape[1])
            whitened = _ar_precision_times(basis, real, OBSERVATIONS[m].correlation)  # (n, 3, T)
            x = np.where(real[:, :, None], self.invert(m, np.where(real[:, :, None], block, 1.0)), 0.0)
            linear = (whitened @ x).reshape(len(x), -1) @ flat  # (n, 7)
            quadratic = np.einsum("njl,nil,jike->nke", whitened, basis, gram, optimize=True)
            solved = np.linalg.solve(np.eye(factors) + quadratic, np.broadcast_to(mixing, (len(x), *mixing.shape)))
            precision[rows] = mixing.T @ (mixing - solved)
            shift[rows] = np.einsum("nk,nkq->nq", linear, solved)
            release(features, rows.start, min(rows.stop, len(lengths)))  # a mapped file may be larger than memory
        return precision, shift

    def label_posterior(self, precision: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of y* given summed information without the prior's, each (N,) float64."""
        total = np.eye(len(LATENTS)) + precision
        along = np.linalg.solve(total, np.broadcast_to(LABEL_WEIGHTS[:, None], (len(total), len(LATENTS), 1)))[..., 0]
        return (along * shift).sum(1), np.sqrt(along @ LABEL_WEIGHTS + LABEL_NOISE**2)

    def label_probabilities(self, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        """P(y = g) for every g of `grid()`, (N, G) float64, where y* ~ N(mean, std^2)."""
        grid = self.grid()
        edges = (grid[1:] + grid[:-1]) / 2
        below = np.zeros((len(mean), len(grid) + 1))
        below[:, 1:-1] = _normal_cdf((edges - mean[:, None]) / std[:, None])
        below[:, -1] = 1.0
        return np.diff(below, axis=1)


class KnownBest:
    """The best predictions that any model can make on the splits of a synthetic data set, for every missing pattern.

    "Best" is over the population: on a finite split a lucky model can score a little higher.
    """

    def __init__(self, population: Population, splits: Mapping[str, object]):
        self.population = population
        self._splits = dict(splits)  # name -> Split
        self._information = {}  # (split name, m) -> (precision, shift)

    def predict(self, split_name: str, available: str) -> dict[str, np.ndarray]:
        """Best predictions where every clip has the modalities `available`, for example ``"a,t"``.

        Returns a dict of (N,) float64: `mean` (least squared error), `median` (least absolute error),
        `p_positive` = P(y > 0) and `p_negative` = P(y < 0).

        Raises:
            UsageError: unknown split or modality.
        """
        return self._decisions(self._probabilities(split_name, self._all_missing_but(split_name, available)))[0]

    def metrics(self, split_name: str, available: str) -> dict[str, float]:
        """Metrics of `rohydr_fast.evaluation.metrics` at their best, where every clip has `available`.

        Each metric is that of its own best decision: P(y > 0) against P(y < 0) for Non0, P(y >= 0) for Has0, the
        likeliest class for ACC5 and ACC7, the median for MAE, the mean for Corr. F1 is that of the same signs.

        Raises:
            UsageError: unknown split or modality.
        """
        return self.metrics_for(split_name, self._all_missing_but(split_name, available))

    def metrics_for(self, split_name: str, missing: np.ndarray) -> dict[str, float]:
        """The same where clip i lacks the modalities with missing[i, m] True; `missing` is (N, 3) bool, order a, t, v.

        Raises:
            UsageError: unknown split, or `missing` of another shape.
        """
        from ..evaluation.metrics import metrics

        _, decisions = self._decisions(self._probabilities(split_name, missing))
        labels = self._split(split_name).labels
        scores = {}
        for names, predictions in decisions.items():
            of_decision = metrics(predictions, labels)
            scores.update({name: of_decision[name] for name in names})
        return scores | {"n": len(labels)}

    def _split(self, name: str):
        if name not in self._splits:
            raise UsageError(f"known best: split must be one of {sorted(self._splits)}, got {name!r}. Name one.")
        return self._splits[name]

    def _all_missing_but(self, split_name: str, available: str) -> np.ndarray:
        chosen = parse_available(available)
        return np.tile([m not in chosen for m in MODALITIES], (len(self._split(split_name).labels), 1))

    def _probabilities(self, split_name: str, missing: np.ndarray) -> np.ndarray:
        split = self._split(split_name)
        missing = np.asarray(missing, dtype=bool)
        if missing.shape != (len(split.labels), len(MODALITIES)):
            raise UsageError(
                f"known best: missing must have shape {(len(split.labels), len(MODALITIES))}, got {missing.shape}."
                f" Pass one row for each clip of {split_name!r}."
            )
        precision = np.zeros((len(missing), len(LATENTS), len(LATENTS)))
        shift = np.zeros((len(missing), len(LATENTS)))
        for index, m in enumerate(MODALITIES):
            kept = ~missing[:, index, None]
            if not kept.any():
                continue
            if (split_name, m) not in self._information:
                parts = split.features[m], split.starts[m], split.lengths[m]
                self._information[split_name, m] = self.population.information(m, *parts)
            of_m = self._information[split_name, m]
            precision += np.where(kept[..., None], of_m[0], 0.0)
            shift += np.where(kept, of_m[1], 0.0)
        return self.population.label_probabilities(*self.population.label_posterior(precision, shift))

    def _decisions(self, probabilities: np.ndarray) -> tuple[dict, dict]:
        """Predictions, and for each group of metrics the array that makes it best."""
        grid = self.population.grid()
        positive = probabilities[:, grid > 0].sum(1)
        negative = probabilities[:, grid < 0].sum(1)
        mean = probabilities @ grid
        median = grid[(probabilities.cumsum(1) < 0.5).sum(1)]
        predictions = {"mean": mean, "median": median, "p_positive": positive, "p_negative": negative}
        decisions = {
            ("Non0_acc_2", "Non0_F1_score"): positive - negative,
            ("Has0_acc_2", "Has0_F1_score"): 0.5 - negative,
            ("Mult_acc_5",): _likeliest_class(probabilities, grid, 2),
            ("Mult_acc_7",): _likeliest_class(probabilities, grid, 3),
            ("MAE",): median,
            ("Corr", "constant_prediction"): mean,
        }
        return predictions, decisions


def temporal_basis(starts: np.ndarray, lengths: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The three temporal patterns over each clip's real steps, (n, 3, T) float64, and which steps those are, (n, T).

    1, sqrt(2) cos(pi tau) and sqrt(2) cos(2 pi tau) with tau = (step - start + 1/2) / length; 0 on padding. The last
    two have mean 0 over a clip, so averaging over time does not see them.
    """
    step = np.arange(steps) - np.asarray(starts)[:, None]  # (n, T)
    length = np.asarray(lengths)[:, None]
    real = (step >= 0) & (step < length)
    tau = (step + 0.5) / np.maximum(length, 1)
    waves = np.sqrt(2.0) * np.cos(np.pi * np.arange(1, 3)[:, None] * tau[:, None, :])  # (n, 2, T)
    return np.concatenate([np.ones_like(tau)[:, None], waves], axis=1) * real[:, None], real


def _ar_precision_times(basis: np.ndarray, real: np.ndarray, correlation: float) -> np.ndarray:
    """Inverse covariance of stationary AR(1) noise of unit variance (tridiagonal) times each pattern, (n, 3, T)."""
    neighbours = np.zeros(real.shape)  # how many real steps are next to this one
    neighbours[:, 1:] += real[:, :-1]
    neighbours[:, :-1] += real[:, 1:]
    # 1 at an end, 1 + rho^2 inside, and 1 - rho^2 for a lone step, all over 1 - rho^2; the basis is 0 on padding.
    product = (1.0 + (neighbours - 1.0) * correlation**2)[:, None] * basis
    product[:, :, 1:] -= correlation * basis[:, :, :-1]
    product[:, :, :-1] -= correlation * basis[:, :, 1:]
    return product / (1.0 - correlation**2) * real[:, None]


def _likeliest_class(probabilities: np.ndarray, grid: np.ndarray, limit: int) -> np.ndarray:
    classes = np.round(np.clip(grid, -limit, limit))
    values = np.arange(-limit, limit + 1)
    return values[np.argmax(probabilities @ (classes[:, None] == values), axis=1)].astype(np.float64)


_erfc = np.frompyfunc(math.erfc, 1, 1)


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return 0.5 * _erfc(-x / math.sqrt(2.0)).astype(np.float64)
