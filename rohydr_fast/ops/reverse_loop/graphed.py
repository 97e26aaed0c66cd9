"""Reverse loops by the Triton kernels. Arguments are those of the package's public functions, already checked.

Without a gradient a step is some 50 launches of a few microseconds, less than what it takes to launch them one by one.
It is recorded as a CUDA graph, on memory of its own, and launched once for each of the K steps, whatever K is.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from .. import philox
from ..denoiser.reference import DenoiserWeights, Modulation
from ..denoiser.triton_impl import denoiser, network
from ..denoiser_block.reference import BlockWeights
from ..dispatch import run_reference
from ..triton.calls import current_device, without_padding
from ..triton.step import reverse_step
from . import reference
from .reference import Chain, step_noise

KEPT = 8
"""Recorded steps that are kept, the last ones used: each has its weights, its inputs and its activations in memory."""

_recorded: "OrderedDict[tuple, RecordedStep]" = OrderedDict()
_lock = threading.Lock()


def reverse_loop(chain: Chain, grad_steps: int) -> Tensor:
    """(B, T, C), see `reference.reverse_loop`; zeros at tokens that `chain.token_mask` leaves out.

    Args:
        grad_steps: the last steps through which a gradient runs; 0 is none.
    """
    history = reference.has_history(chain.coefficients)  # which a recorded step does not carry on
    if grad_steps or history or torch.compiler.is_compiling() or _is_capturing(chain.x):
        return _step_by_step(chain)
    if chain.x.numel() == 0:
        return torch.empty_like(chain.x)
    with torch.no_grad():
        return _recorded_step(chain).run(chain)


@torch.no_grad()
def trajectory(chain: Chain) -> tuple[Tensor, Tensor]:
    """x_t of every step (K, B, T, C), step 1 first, and x_0 (B, T, C)."""
    states: list[Tensor] = []
    x_0 = _step_by_step(chain, states)
    return torch.stack(states[::-1]), x_0


def _step_by_step(chain: Chain, states: list[Tensor] | None = None) -> Tensor:
    """The loop of the reference around the kernels of the network, through which gradients run."""
    options = {name: getattr(chain, name) for name in ("num_heads", "token_mask", "key_mask", "grad_steps")}
    arguments = (chain.position, chain.modulation, chain.cond_kv, chain.weights, chain.coefficients, chain.noise)
    x = without_padding(chain.x, chain.token_mask)
    x_0 = run_reference(reference.reverse_loop, x, *arguments, **options, states=states, network=denoiser)
    return without_padding(x_0, chain.token_mask)


class RecordedStep:
    """One step of Eq. 2 on memory of its own, which a call fills: the same launches on the same addresses every time.

    Args:
        chain: one for whose shapes and dtype the step is made; nothing of its memory is kept.

    Calls from several threads or streams take turns.
    """

    def __init__(self, chain: Chain):
        x, modulation = chain.x, chain.modulation
        with torch.inference_mode(False), torch.no_grad():
            self.x = _zeros(x.shape, x)
            self.position = _zeros(chain.position.shape, x)
            self.cond_kv = _zeros(chain.cond_kv.shape, x)
            self.weights = [_zeros(weight.shape, x) for weight in chain.weights.tensors()]
            self.row = Modulation(*[_zeros((1, *table.shape[1:]), x) for table in modulation])
            self.coefficients = _zeros((4,), x, torch.float32)
            self.z = _zeros(x.shape, x, torch.float32)
            masks = (chain.token_mask, chain.key_mask)
            self.masks = [None if mask is None else _zeros(mask.shape, x, torch.bool) for mask in masks]
            self.num_heads = chain.num_heads
            self._turn = threading.Lock()
            self._done = torch.cuda.Event() if x.is_cuda else None
            self._launch = record(self._step, x.device)
        self._finish()

    def run(self, chain: Chain) -> Tensor:
        """x_0 (B, T, C) of a chain of the same shapes."""
        with self._turn, current_device(self.x):
            if self._done is not None:
                torch.cuda.current_stream().wait_event(self._done)  # another stream may still read what is filled now
            self._fill(chain)
            coefficients = chain.coefficients.to(self.x.device, torch.float32)
            noise = chain.noise._replace(sample_ids=chain.noise.sample_ids.cpu())  # once, and not at every step
            blocks, final = chain.modulation
            for i in range(len(coefficients), 0, -1):
                rows = [blocks[i - 1 : i], final[i - 1 : i], coefficients[i - 1]]
                torch._foreach_copy_([*self.row, self.coefficients], rows)
                if i > 1:
                    self.z.copy_(step_noise(self.z, noise, step=i, stream=philox.Stream.STEP))
                else:
                    self.z.zero_()
                self._launch()
            out = self.x.clone()
            self._finish()
            return out

    def _finish(self) -> None:
        """What the next call waits for, on whatever stream it runs."""
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(self.x.device))

    def _fill(self, chain: Chain) -> None:
        """The numbers of a call: weights too, which may have changed, or lie elsewhere."""
        torch._foreach_copy_(self.weights, [weight.detach() for weight in chain.weights.tensors()])
        self.x.copy_(without_padding(chain.x, chain.token_mask))
        self.position.copy_(chain.position)
        self.cond_kv.copy_(chain.cond_kv)
        for own, mask in zip(self.masks, (chain.token_mask, chain.key_mask), strict=True):
            if own is not None:
                own.copy_(mask)

    def _step(self) -> None:
        both = network(
            self.x, self.position, self.row, self.cond_kv, _weights_of(self.weights), self.num_heads, *self.masks
        )
        reverse_step(self.x, both, self.coefficients, self.z, self.masks[0], self.x)


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """On a CUDA device `step` as a graph, to be called with the same effect in one launch; elsewhere itself."""
    if device.type != "cuda":
        return step
    with torch.cuda.device(device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            step()  # kernels are compiled and loaded, which a recording does not allow
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    return graph.replay


def _recorded_step(chain: Chain) -> RecordedStep:
    key = _key(chain)
    with _lock:
        step = _recorded.pop(key, None) or RecordedStep(chain)
        _recorded[key] = step
        while len(_recorded) > KEPT:
            _recorded.popitem(last=False)
        return step


def _key(chain: Chain) -> tuple:
    """What a recorded step depends on: everything but numbers and K."""
    shapes = [tuple(tensor.shape) for tensor in (chain.x, chain.cond_kv, *chain.weights.tensors())]
    masks = (chain.token_mask is None, chain.key_mask is None)
    return (chain.x.device, chain.x.dtype, chain.num_heads, *masks, *shapes)


def _weights_of(tensors: list[Tensor]) -> DenoiserWeights:
    """The inverse of `DenoiserWeights.tensors`."""
    fields = len(BlockWeights._fields)
    blocks = [BlockWeights(*tensors[i : i + fields]) for i in range(2, len(tensors) - 2, fields)]
    return DenoiserWeights(*tensors[:2], tuple(blocks), *tensors[-2:])


def _is_capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _zeros(shape, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.zeros(shape, device=like.device, dtype=dtype or like.dtype)
