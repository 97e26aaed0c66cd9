"""Sampling with any denoiser of this package: ancestral (Eq. 2), or by a solver of `diffusion.solvers`."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import philox
from ..ops.dispatch import constant_when_traced
from ..ops.reverse_loop import Chain, Modulation, NoiseKey, first_undefined_steps, reverse_loops
from ..ops.reverse_loop.reference import step_noise
from .schedule import Schedule


class SampleRequest(NamedTuple):
    """The arguments of `sample`, which explains them."""

    denoiser: torch.nn.Module
    cond: Tensor
    steps: int = 50
    seed: int = 0
    tokens: int | None = None
    key_mask: Tensor | None = None
    token_mask: Tensor | None = None
    schedule: Schedule | None = None
    prediction: str = "eps"
    noise: NoiseKey | None = None
    grad_steps: int | None = None
    sampler: str = "ancestral"
    eta: float = 0.0


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
    sampler: str = "ancestral",
    eta: float = 0.0,
    backend: str | None = None,
    max_memory: int | None = None,
) -> Tensor:
    """Draw x_0 from noise by K reverse steps, in the denoiser's normalised units.

    Condition keys and values, modulation and coefficients are computed once, before the loop. All of it runs in the
    wider dtype of `cond` and the denoiser, on the CPU also under `torch.autocast`. On a CUDA device bfloat16 autocast
    gives the loop bfloat16 operands, as it gives layers; the result has the wider dtype nevertheless.

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
        sampler: ancestral (Eq. 2, with the learned sigma), ddim, dpm++2m or unipc; see `diffusion.solvers`.
        eta: of ddim, 0 (no noise after the start) to 1.
        backend: see `rohydr_fast.explain`.
        max_memory: bytes to keep for the way back, see `ops.reverse_loop.reverse_loops`; any number by default.

    Returns:
        (B, T, C). Rows that `token_mask` leaves out hold numbers without meaning.

    Raises:
        UsageError: shapes or step counts that do not fit, an unknown sampler, too little memory.
        BackendUnavailable: the named backend cannot run this call.

    Cost: one native call on "cpp" for the loop, and one for all gradients. With `torch.compile(fullgraph=True)` there
    is no graph break.
    """
    request = SampleRequest(
        denoiser, cond, steps, seed, tokens, key_mask, token_mask, schedule, prediction, noise, grad_steps, sampler, eta
    )
    return sample_many([request], backend=backend, max_memory=max_memory)[0]


def sample_many(
    requests: Sequence[SampleRequest], *, backend: str | None = None, max_memory: int | None = None
) -> list[Tensor]:
    """Several independent calls of `sample` at once, for example one for each missing modality.

    Args:
        requests: the arguments of each, see `sample`; one dtype and one device for all.
        backend: see `rohydr_fast.explain`.
        max_memory: bytes to keep for the way back through all of them, see `ops.reverse_loop.reverse_loops`.

    Returns:
        (B, T, C) for each request, the same numbers as `sample` gives on the same backend.

    Raises:
        UsageError: as `sample`.
        BackendUnavailable: the named backend cannot run this call.

    Cost: one native call on "cpp" for all requests, and one for all gradients.
    """
    chains = [chain_of(request) for request in requests]
    drawn = reverse_loops([under_autocast(chain) for chain in chains], backend=backend, max_memory=max_memory)
    return [x.to(chain.x.dtype) for x, chain in zip(drawn, chains, strict=True)]


@torch.no_grad()
def undefined_steps(requests: Sequence[SampleRequest], *, backend: str | None = None) -> list[int | None]:
    """For each request, the first step whose result is not finite, or None; see `ops.reverse_loop`. Runs them again."""
    return first_undefined_steps([chain_of(request) for request in requests], backend=backend)


def chain_of(request: SampleRequest, draw: Callable = step_noise) -> Chain:
    """x_K, which `draw` gives, and everything else that a loop reads."""
    denoiser, cond, token_mask = request.denoiser, request.cond, request.token_mask
    noise = request.noise
    if noise is None:
        noise = NoiseKey(request.seed, torch.arange(cond.shape[0]), 0)
    tokens = token_mask.shape[1] if token_mask is not None else request.tokens or cond.shape[1]
    schedule = Schedule() if request.schedule is None else request.schedule
    options = (request.prediction, request.sampler, request.eta)
    timesteps, coefficients = _table(schedule, request.steps, options, cond.device)
    with torch.no_grad() if request.grad_steps == 0 and torch.is_grad_enabled() else nullcontext():
        weights = denoiser.weights()
        dtype = torch.promote_types(cond.dtype, weights.in_weight.dtype)
        start = cond.new_empty((cond.shape[0], tokens, denoiser.channels), dtype=dtype)
        modulation, cond_kv = denoiser.conditioning(timesteps, cond)  # in `dtype`
        return Chain(
            draw(start, noise, step=0, stream=philox.Stream.START),
            denoiser.position(tokens).to(dtype),
            modulation,
            cond_kv,
            weights,
            coefficients,
            noise,
            denoiser.num_heads,
            token_mask,
            request.key_mask,
            request.grad_steps,
        )


def under_autocast(chain: Chain) -> Chain:
    """A float32 chain with operands in bfloat16 where `torch.autocast` asks a CUDA device for them, else as it is.

    The kernels there round products alone, and are several times as fast; a CPU would only convert.
    """
    if not (chain.x.is_cuda and chain.x.dtype == torch.float32 and torch.is_autocast_enabled("cuda")):
        return chain
    return in_bfloat16(chain) if torch.get_autocast_dtype("cuda") == torch.bfloat16 else chain


def in_bfloat16(chain: Chain) -> Chain:
    """All but the coefficients in bfloat16; gradients come back in the dtype that was given."""
    low = torch.bfloat16
    return chain._replace(
        x=chain.x.to(low),
        position=chain.position.to(low),
        modulation=Modulation(*[part.to(low) for part in chain.modulation]),
        cond_kv=chain.cond_kv.to(low),
        weights=chain.weights.to(low),
    )


def _table(schedule: Schedule, steps: int, options: tuple, device: torch.device) -> tuple[Tensor, Tensor]:
    """The timesteps (K,) of a chain, and the coefficients (K, 4) or (K, 8) on `device`.

    Args:
        options: prediction, sampler and eta, see `Schedule.table`.
    """
    if not torch.compiler.is_compiling():
        if device.type != "cpu":
            return _table_on(schedule, steps, options, device)
        table = schedule.table(steps, *options)
        return table.timesteps, table.coefficients
    # len(range()) and a comparison make constants of numbers that the compiler would keep as symbols.
    prediction, sampler, eta = options
    timesteps, coefficients = _table_numbers(schedule, len(range(steps)), prediction, sampler, eta if eta else 0.0)
    return torch.tensor(timesteps, device=device), torch.tensor(coefficients, dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def _table_on(schedule: Schedule, steps: int, options: tuple, device: torch.device) -> tuple[Tensor, Tensor]:
    """What a device has already: a copy from the host would wait for all that the device has to do."""
    with torch.inference_mode(False), torch.no_grad():
        table = schedule.table(steps, *options)
        return table.timesteps, table.coefficients.to(device)


@constant_when_traced
def _table_numbers(schedule: Schedule, steps: int, *options) -> tuple[list, list]:
    """The table as numbers: of a constant tensor, dynamic shapes would take K for any size that equals it."""
    table = schedule.table(steps, *options)
    return table.timesteps.tolist(), table.coefficients.tolist()
