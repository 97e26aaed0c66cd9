"""How the diffusion of a training step is computed: by this package, or by one of its opponents in plain PyTorch.

A method serves a whole model: while it is installed, the reverse chains (`sample_many`) and Eq. 3 (`denoising_losses`)
are its own, and everything around them is the package's. The opponents draw their noise by torch, unless the gate asks
for the numbers that the package draws.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache
from unittest.mock import patch

import torch
import torch.nn.functional as F
from hoisted import hoisted_network, sdpa, step_coefficients, written_out
from plain import features_of, plain_network
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import rohydr_fast
from rohydr_fast.diffusion.process import DenoisingRequest
from rohydr_fast.diffusion.sampler import SampleRequest
from rohydr_fast.diffusion.schedule import ReverseTable, Schedule
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.models.recovery import chained as recovery
from rohydr_fast.models.recovery import diffusion as eq3
from rohydr_fast.ops.philox import Stream
from rohydr_fast.ops.reverse_loop import NoiseKey
from rohydr_fast.ops.reverse_loop.reference import reverse_step

Draw = Callable[..., Tensor]
"""As `step_noise` of the reference: (x, key, step=, stream=) to unit normal numbers in the shape of x."""


def torch_noise(x: Tensor, noise: NoiseKey, *, step: int, stream: Stream) -> Tensor:
    """Torch's own random numbers: what a researcher draws."""
    return torch.randn(x.shape, dtype=x.dtype, device=x.device)


class Package:
    """This package, on one of its backends.

    Args:
        least_memory: keep nothing but x_t of every step for the way back of the chains.
    """

    def __init__(self, backend: str, *, least_memory: bool = False):
        self.backend, self.least_memory = backend, least_memory

    def installed(self) -> AbstractContextManager:
        """Calls of the package in the ``with`` block run by this method."""
        return rohydr_fast.backend(self.backend)

    def max_memory(self, requests: Sequence[SampleRequest]) -> int | None:
        """Bytes that the chains may keep, for `sample_many`."""
        if not self.least_memory:
            return None
        return sum(4 * r.steps * r.token_mask.numel() * r.denoiser.channels for r in requests)


class Naive:
    """The loop as one writes it first: the whole network at every step, condition and modulation included."""

    def __init__(self, draw: Draw):
        self.draw = draw

    @contextmanager
    def installed(self):
        """Chains and Eq. 3 in the ``with`` block are this method's."""
        with ExitStack() as stack:
            stack.enter_context(patch.object(recovery, "sample_many", self.chains))
            stack.enter_context(patch.object(eq3, "denoising_losses", self.denoising_losses))
            yield

    def max_memory(self, requests: Sequence[SampleRequest]) -> None:
        """PyTorch knows no limit."""

    def denoising_losses(self, requests: Sequence[DenoisingRequest]) -> list[Tensor]:
        """Eq. 3 of each request."""
        return [self.denoising_loss(*request) for request in requests]

    def denoising_loss(self, process, denoiser, x_0, t, encoded, noise, token_mask, key_mask) -> Tensor:
        """Eq. 3 of one; arguments as those of `DenoisingRequest`."""
        eps = self.draw(x_0, noise, step=0, stream=Stream.FORWARD)
        previous = self.draw(x_0, noise, step=0, stream=Stream.FORWARD_PREVIOUS) if process.loss == "nll" else None
        drawn = process.sample(x_0, t, eps, previous)
        masks = _masks(token_mask, key_mask)
        prediction, v = self.network(denoiser, drawn.x_t, features_of(t, x_0), encoded, masks)
        return process.eq3_loss(drawn, prediction, v, token_mask)

    def chains(self, requests: Sequence[SampleRequest], *, max_memory: int | None = None) -> list[Tensor]:
        """x_0 (B, T, C) of each request."""
        return [self.chain(request) for request in requests]

    def chain(self, request: SampleRequest) -> Tensor:
        """x_0 of one request."""
        table, masks = _table(request), _masks_of(request)
        x = self.draw(_start(request), request.noise, step=0, stream=Stream.START)
        for i in range(request.steps, 0, -1):
            features = features_of(table.timesteps[i - 1].expand(len(x)), x)
            prediction, v = self.network(request.denoiser, x, features, request.cond, masks)
            z = self.draw(x, request.noise, step=i, stream=Stream.STEP) if i > 1 else None
            x = reverse_step(x, prediction, v, table.coefficients[i - 1], z)
        return x

    def network(self, denoiser: Denoiser, x: Tensor, features: Tensor, encoded: Tensor, masks: dict) -> tuple:
        """The prediction and v (B, T, C), each sample at its own step."""
        return plain_network(denoiser, x, features, denoiser.position(x.shape[1]), encoded, **masks)


class Hoisted(Naive):
    """Eager, with everything that does not change from step to step taken out of the loop.

    It computes what the package's backend "reference" computes, but is 4 to 11 % faster: adaLN in one operation. With
    torch's fused attention: in training it is as fast as matrix products and softmax, or up to 19 % faster.
    """

    def chain(self, request: SampleRequest) -> Tensor:
        """x_0 of one request."""
        denoiser, masks = request.denoiser, _masks_of(request)
        x = self.draw(_start(request), request.noise, step=0, stream=Stream.START)
        table = _table(request)
        rows = step_rows(denoiser, features_of(table.timesteps, x))
        coefficients = step_coefficients(table.coefficients.to(x.dtype))
        kv = [part.contiguous() for block in denoiser.blocks for part in block.kv(request.cond).chunk(2, -1)]
        weights = denoiser.weights()
        position = denoiser.position(x.shape[1]).to(x.dtype) + weights.in_bias
        x.requires_grad_()  # or the compiler makes two graphs, one for the first step
        for i in range(request.steps, 0, -1):
            z = self.draw(x, request.noise, step=i, stream=Stream.STEP) if i > 1 else torch.zeros_like(x)
            x = self.step(
                x, rows[i - 1], coefficients[i - 1], z, kv, position, weights, heads=denoiser.num_heads, **masks
            )
        return x

    def step(self, *args, **options) -> Tensor:
        """See `hoisted_step`."""
        return hoisted_step(*args, **options)


class Checkpointed(Hoisted):
    """The hoisted loop that keeps x_t of every step and computes the rest of it again on the way back."""

    def step(self, *args, **options) -> Tensor:
        """A step that keeps its inputs alone."""
        return _checkpoint(hoisted_step, *args, **options)

    def network(self, denoiser: Denoiser, x: Tensor, features: Tensor, encoded: Tensor, masks: dict) -> tuple:
        """One pass is one step, where nothing is saved: here each block is a unit."""
        position = denoiser.position(x.shape[1])
        return plain_network(denoiser, x, features, position, encoded, run=_checkpoint, **masks)


class Compiled(Hoisted):
    """`torch.compile` of the hoisted step and of the network, forward and backward.

    Attention is written out where heads have up to 8 channels: 14 % faster for `narrow`, but 4 % slower for `paper`.
    Tried without gain: the C++ wrapper.
    """

    def __init__(self, draw: Draw):
        super().__init__(draw)
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # a graph for each shape
        self._step, self._network = _compiled(hoisted_step), _compiled(plain_network)

    def step(self, *args, heads: int, **options) -> Tensor:
        """See `hoisted_step`."""
        position = args[5]
        attention = written_out if position.shape[1] // heads <= 8 else sdpa
        return self._step(*args, heads=heads, attention=attention, **options)

    def network(self, denoiser: Denoiser, x: Tensor, features: Tensor, encoded: Tensor, masks: dict) -> tuple:
        """The prediction and v (B, T, C), each sample at its own step."""
        return self._network(denoiser, x, features, denoiser.position(x.shape[1]), encoded, **masks)


def hoisted_step(
    x: Tensor,
    rows: list[Tensor],
    coefficients: Tensor,
    z: Tensor,
    kv: list[Tensor],
    position: Tensor,
    weights,
    *,
    heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    attention: Callable = sdpa,
) -> Tensor:
    """x_{t-1} (B, T, C) of x_t, see `hoisted_network`; at the last step z is zero."""
    token_mask, key_mask = (None if mask is None else mask[:, None, None] for mask in (token_mask, key_mask))
    prediction, v = hoisted_network(x, rows, kv, position, weights, heads, attention, key_mask, token_mask)
    c0, c1, c2, c3 = coefficients.unbind()
    return c0 * x + c1 * prediction + torch.exp(c2 * v + c3) * z


def step_rows(denoiser: Denoiser, features: Tensor) -> list[list[Tensor]]:
    """For each of the K steps of `features` (K, 256), the rows of `hoisted_network`."""
    time, ones = F.silu(denoiser.time(features)), features.new_zeros(9, 1)
    ones[1::3] = 1  # 1 + scale; a list of indices would be copied to the device
    tables = [block.modulation(time).unflatten(-1, (9, -1)) + ones for block in denoiser.blocks]
    final = denoiser.final_modulation(time).unflatten(-1, (2, -1)) + ones[:2]
    return [list(row.unbind()) for row in torch.cat([*tables, final], 1).unbind()]


@lru_cache
def _compiled(function: Callable) -> Callable:
    """One for all: what the gate has compiled is what is timed."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def _checkpoint(function: Callable, *args, **options):
    """Without the state of the random generators: nothing is drawn inside."""
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, **options)


def _table(request: SampleRequest) -> ReverseTable:
    """Timesteps and coefficients of the chain, where its condition lies."""
    return _table_on(request.schedule, request.steps, request.prediction, request.cond.device)


@lru_cache  # a recording of a CUDA graph allows no copies from the host
def _table_on(schedule: Schedule, steps: int, prediction: str, device: torch.device) -> ReverseTable:
    return schedule.table(steps, prediction).to(device)


def _start(request: SampleRequest) -> Tensor:
    """An x_K without content, (B, T, C)."""
    cond = request.cond
    tokens = request.tokens if request.token_mask is None else request.token_mask.shape[1]
    return cond.new_empty(len(cond), tokens, request.denoiser.channels)


def _masks_of(request: SampleRequest) -> dict[str, Tensor | None]:
    return _masks(request.token_mask, request.key_mask)


def _masks(token_mask: Tensor | None, key_mask: Tensor | None) -> dict[str, Tensor | None]:
    """The masks that leave anything out: attention is faster without."""
    masks = {"token_mask": token_mask, "key_mask": key_mask}
    return {name: None if mask is None or bool(mask.all()) else mask for name, mask in masks.items()}
