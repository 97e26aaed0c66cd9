"""The reverse diffusion of one modality, all K steps of Eq. 2: the specification of the fused loop."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import philox
from ..denoiser.reference import DenoiserWeights, Modulation, denoiser


class NoiseKey(NamedTuple):
    """What the noise of a chain is a function of; see `ops.philox`."""

    seed: int
    sample_ids: Tensor  # (B,) int64
    modality: int  # index in `MODALITIES`


class Chain(NamedTuple):
    """The arguments of one reverse loop, see `reverse_loop`."""

    x: Tensor  # (B, T, C)
    position: Tensor  # (T, W)
    modulation: Modulation
    cond_kv: Tensor  # (L, 2, B, S, W)
    weights: DenoiserWeights
    coefficients: Tensor  # (K, 4), or (K, 8) with a history
    noise: NoiseKey
    num_heads: int
    token_mask: Tensor | None = None  # (B, T) bool
    key_mask: Tensor | None = None  # (B, S) bool
    grad_steps: int | None = None

    def tensors(self) -> list[Tensor]:
        """Everything that a gradient can be asked for."""
        inputs = [self.x, self.position, *self.modulation, self.cond_kv, self.coefficients]
        return inputs + self.weights.tensors()


def log_variance(v: Tensor, log_beta: Tensor, log_posterior: Tensor) -> Tensor:
    """log sigma^2 = u log beta_t + (1 - u) log btilde_t, u = (v + 1) / 2: the learned sigma of Eq. 1."""
    u = (v + 1) / 2
    return u * log_beta + (1 - u) * log_posterior


def reverse_step(x: Tensor, prediction: Tensor, v: Tensor, coefficients: Tensor, z: Tensor | None) -> Tensor:
    """x_{t-1} = mu + sigma z, mu = c_x x_t + c_p prediction (Eq. 2); z is None at the last step.

    Args:
        coefficients: (4,) c_x, c_p, log beta_t, log btilde_t; one row of `Schedule.table`.
    """
    c_x, c_p, log_beta, log_posterior = coefficients[:4].to(x.dtype).unbind()
    mu = c_x * x + c_p * prediction
    return mu if z is None else mu + torch.exp(0.5 * log_variance(v, log_beta, log_posterior)) * z


def has_history(coefficients: Tensor) -> bool:
    """Whether a table (K, 4) or (K, 8) is that of a sampler with a history."""
    return coefficients.shape[1] == 8


def next_history(x: Tensor, prediction: Tensor, history: Tensor, coefficients: Tensor) -> Tensor:
    """h' = c_hx x + c_hp prediction + c_hh h of a sampler with a history, see `diffusion.solvers`.

    Args:
        coefficients: (8,), a row of the table of such a sampler.
    """
    c_hx, c_hp, c_hh = coefficients[5:].to(x.dtype).unbind()
    return c_hx * x + c_hp * prediction + c_hh * history


def advance(
    x: Tensor, history: Tensor | None, prediction: Tensor, v: Tensor, coefficients: Tensor, z: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """x and the history after a step: `reverse_step` and, of a sampler with a history (B, T, C), its part of both."""
    following = reverse_step(x, prediction, v, coefficients, z)
    if history is None:
        return following, None
    following = following + coefficients[4].to(x.dtype) * history
    return following, next_history(x, prediction, history, coefficients)


def step_noise(x: Tensor, noise: NoiseKey, *, step: int, stream: philox.Stream) -> Tensor:
    """Unit normal numbers (B, T, C) of one step, element t * C + c of the sample's stream."""
    flat = philox.normal(
        noise.seed,
        noise.sample_ids,
        modality=noise.modality,
        step=step,
        stream=stream,
        count=x.shape[1] * x.shape[2],
        device=x.device,
    )
    return flat.to(x.dtype).view(x.shape)


def reverse_loop(
    x: Tensor,
    position: Tensor,
    modulation: Modulation,
    cond_kv: Tensor,
    weights: DenoiserWeights,
    coefficients: Tensor,
    noise: NoiseKey,
    *,
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    grad_steps: int | None = None,
    states: list[Tensor] | None = None,
    network: Callable = denoiser,
) -> Tensor:
    """All K reverse steps from x_K to x_0 (Eq. 2), step i using row i - 1 of the tables.

    Args:
        x: (B, T, C) x_K, unit normal.
        position, modulation, cond_kv, weights, masks: see `denoiser`; modulation has K rows, (K, L, 9, W), (K, 2, W).
        coefficients: (K, 4), see `reverse_step`; (K, 8) of a sampler with a history, which starts as 0: then the fifth
            column times the history is added to each step's result.
        noise: the key of z_i for i = K..2; z_1 = 0.
        grad_steps: gradients run through the last `grad_steps` steps; None means all K, 0 means none.
        states: receives x_t (B, T, C) of steps K..1, in this order.
        network: what stands for `denoiser`.

    Returns:
        (B, T, C) x_0. Rows that `token_mask` leaves out hold numbers without meaning.
    """
    steps = len(coefficients)
    history = torch.zeros_like(x) if has_history(coefficients) else None
    grad_steps = steps if grad_steps is None else grad_steps
    for i in range(steps, 0, -1):
        if states is not None:
            states.append(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and i <= grad_steps):
            row = Modulation(modulation.blocks[i - 1], modulation.final[i - 1])
            prediction, v = network(
                x, position, row, cond_kv, weights, num_heads=num_heads, token_mask=token_mask, key_mask=key_mask
            )
            z = step_noise(x, noise, step=i, stream=philox.Stream.STEP) if i > 1 else None
            x, history = advance(x, history, prediction, v, coefficients[i - 1], z)
    return x
