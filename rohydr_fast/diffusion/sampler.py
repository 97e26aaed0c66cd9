"""Ancestral sampling (Eq. 2) with any denoiser of this package."""

import torch
from torch import Tensor

from ..errors import UsageError
from ..ops import philox
from ..ops.reverse_loop import NoiseKey, reverse_loop
from ..ops.reverse_loop.reference import step_noise
from .schedule import Schedule


def sample(
    denoiser,
    cond: Tensor,
    *,
    steps: int = 50,
    seed: int = 0,
    tokens: int | None = None,
    key_mask: Tensor | None = None,
    token_mask: Tensor | None = None,
    schedule: Schedule | None = None,
    prediction: str = "eps",
    noise: NoiseKey | None = None,
    grad_steps: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draw x_0 from noise by K reverse steps (Eq. 2), in the denoiser's normalised units.

    Condition keys and values, modulation and coefficients are computed once, before the loop.

    Args:
        denoiser: a `models.denoiser.Denoiser`.
        cond: (B, S, W) encoded condition, from `models.condition.ConditionEncoder`.
        steps: K, at most the schedule's N.
        seed: 64 bits; the noise is a function of (seed, row, step, element) and nothing else.
        tokens: T, when there is no `token_mask`; S by default.
        key_mask: (B, S) bool, True where the condition has a key.
        token_mask: (B, T) bool, True at tokens to recover.
        schedule: DDPM's linear one with N = 1000 by default.
        prediction: what the network predicts: eps, v or x0.
        noise: the key of the noise, instead of `seed` and the row number.
        grad_steps: gradients run through the last so many steps; None is all of them, 0 none.
        backend: see `rohydr_fast.explain`.

    Returns:
        (B, T, C).

    Raises:
        UsageError: shapes or step counts that do not fit.
        BackendUnavailable: the named backend cannot run this call.
    """
    batch = cond.shape[0]
    if noise is None:
        noise = NoiseKey(seed, torch.arange(batch), 0)
    if grad_steps is not None and grad_steps < 0:
        raise UsageError(f"sample: grad_steps must be 0 or more, got {grad_steps}. Use None for all steps.")
    tokens = token_mask.shape[1] if token_mask is not None else tokens or cond.shape[1]
    table = (schedule or Schedule()).table(steps, prediction).to(cond.device)
    with torch.set_grad_enabled(torch.is_grad_enabled() and grad_steps != 0):
        start = cond.new_empty(batch, tokens, denoiser.channels)
        return reverse_loop(
            step_noise(start, noise, step=0, stream=philox.Stream.START),
            denoiser.position(tokens),
            denoiser.modulation(table.timesteps),
            denoiser.condition_kv(cond),
            denoiser.weights(),
            table.coefficients,
            noise,
            num_heads=denoiser.num_heads,
            token_mask=token_mask,
            key_mask=key_mask,
            grad_steps=grad_steps,
            backend=backend,
        )
