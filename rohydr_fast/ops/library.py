"""The operations as `torch.ops.rohydr_fast.*`: what torch needs to trace, compile, differentiate and dispatch them.

Each has a schema, a CPU implementation over `rohydr_fast._C`, some one on CUDA, and a fake one that gives shapes alone.
Inputs are only read, whatever their strides; every result is a fresh contiguous tensor. An empty result calls nothing.
The number of threads is torch's at the time of the call. The gradients are in `gradients`; a call that records one of
an operation that has none is an error.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _native
from ..errors import BackendUnavailable
from . import gradients, philox
from .chain_lists import SCHEMA, SEED_MASK, ChainLists, by_chain
from .conditioning import operation as conditioning
from .denoiser_block import cuda as denoiser_block_cuda
from .diffusion_loss import operation as diffusion_loss
from .memory import empty
from .packing import CACHE, as_array, as_optional_array, native_threads
from .reverse_loop import cuda as reverse_loop_cuda

NAMESPACE = "rohydr_fast"


def signed(seed: int) -> int:
    """The integer of a schema, which has a sign, with the bits of a 64-bit `seed`."""
    seed = int(seed)  # numpy's would overflow
    return seed - 2**64 if seed >= 2**63 else seed


def _cross_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, key_mask: Tensor | None = None) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype)
    if out.numel():
        arrays = (as_array(q), as_array(k), as_array(v))
        mask = as_optional_array(key_mask)
        _native.load().cross_attention(*arrays, num_heads, mask, out.numpy(), native_threads())
    return out


def _denoiser_block(
    x: Tensor,
    modulation: Tensor,
    cond_kv: Tensor,
    weights: list[Tensor],
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    if out.numel():
        packed = CACHE.get("block", weights, num_heads, x.dtype == torch.float64)
        arrays = (as_array(x), as_array(modulation), as_array(cond_kv))
        masks = (as_optional_array(token_mask), as_optional_array(key_mask))
        _native.load().denoiser_block(packed, *arrays, *masks, out.numpy(), native_threads())
    return out


def _denoiser(
    x: Tensor,
    position: Tensor,
    modulation_blocks: Tensor,
    modulation_final: Tensor,
    cond_kv: Tensor,
    weights: list[Tensor],
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    tape: Tensor | None = None,
) -> Tensor:
    out = torch.empty((*x.shape[:2], 2 * x.shape[2]), dtype=x.dtype)
    if out.numel():
        packed = CACHE.get("denoiser", weights, num_heads, x.dtype == torch.float64)
        arrays = [as_array(tensor) for tensor in (x, position, modulation_blocks, modulation_final, cond_kv)]
        masks = (as_optional_array(token_mask), as_optional_array(key_mask))
        kept = None if tape is None else tape.numpy()
        _native.load().denoiser(packed, *arrays, *masks, out.numpy(), native_threads(), tape=kept)
    return out


def _denoiser_with_tape(x: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    *arguments, tape_size = arguments
    tape = empty((tape_size,), x.dtype)
    return _denoiser(x, *arguments, tape if tape_size else None), tape


def _reverse_loops(x: list[Tensor], *lists) -> list[Tensor]:
    return _run_loops(x, ChainLists(*lists), [0] * len(x), [0] * len(x))[0]


def _reverse_loops_with_states(x: list[Tensor], *arguments) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    *lists, grad_steps, tape_sizes = arguments
    return _run_loops(x, ChainLists(*lists), grad_steps, tape_sizes)


def _run_loops(x: list[Tensor], chains: ChainLists, grad_steps: list[int], tape_sizes: list[int]) -> tuple:
    """x_0 of each chain; the x_t that its last `grad_steps` steps start from, zeros at masked tokens; and its tape."""
    outs = [torch.empty(start.shape, dtype=start.dtype) for start in x]
    tapes = [empty((size,), start.dtype) for start, size in zip(x, tape_sizes, strict=True)]
    states, calls = [], []
    weights = by_chain(chains.weights, chains.weight_counts)
    for i, start in enumerate(x):
        steps = grad_steps[i]
        make = torch.empty if chains.token_mask[i] is None else torch.zeros
        states.append(make((steps, *start.shape), dtype=start.dtype))
        if start.numel():
            kept = states[i].numpy() if steps else None
            tape = tapes[i].numpy() if tape_sizes[i] else None
            calls.append((*chains.native(i, start, weights[i]), outs[i].numpy(), kept, tape))
    if calls:
        _native.load().reverse_loop(calls, native_threads())
    return outs, states, tapes


def _philox_normal(
    sample_ids: Tensor, seed: int, modality: int, step: int, stream: int, count: int, backend: str | None = None
) -> Tensor:
    return philox.normal(
        seed & SEED_MASK, sample_ids, modality=modality, step=step, stream=stream, count=count, backend=backend
    )


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _fake_loops_with_states(x: list[Tensor], *arguments) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    *_, grad_steps, tape_sizes = arguments
    states = [
        start.new_empty((steps, *start.shape), dtype=torch.promote_types(start.dtype, torch.float32))
        for start, steps in zip(x, grad_steps, strict=True)
    ]
    tapes = [start.new_empty(size) for start, size in zip(x, tape_sizes, strict=True)]
    return [_like(start) for start in x], states, tapes


def _fake_denoiser(x: Tensor, *rest) -> Tensor:
    return x.new_empty((*x.shape[:2], 2 * x.shape[2]))


_MASKS = "Tensor? token_mask=None, Tensor? key_mask=None"
_PASS = (
    "Tensor x, Tensor position, Tensor modulation_blocks, Tensor modulation_final, Tensor cond_kv, Tensor[] weights, "
    "int num_heads"
)
_SCHEMAS = {
    "cross_attention": "(Tensor q, Tensor k, Tensor v, int num_heads, Tensor? key_mask=None) -> Tensor",
    "denoiser_block": (
        f"(Tensor x, Tensor modulation, Tensor cond_kv, Tensor[] weights, int num_heads, {_MASKS}) -> Tensor"
    ),
    "denoiser": f"({_PASS}, {_MASKS}) -> Tensor",
    "denoiser_with_tape": (f"({_PASS}, Tensor? token_mask, Tensor? key_mask, SymInt tape_size) -> (Tensor, Tensor)"),
    "reverse_loops": f"(Tensor[] x, {SCHEMA}) -> Tensor[]",
    "reverse_loops_with_states": (
        f"(Tensor[] x, {SCHEMA}, SymInt[] grad_steps, SymInt[] tape_sizes) -> (Tensor[], Tensor[], Tensor[])"
    ),
    "philox_normal": (
        "(Tensor sample_ids, SymInt seed, int modality, int step, int stream, SymInt count, str? backend=None) "
        "-> Tensor"
    ),
    **conditioning.SCHEMAS,
    **diffusion_loss.SCHEMAS,
    **gradients.SCHEMAS,
}
_CPU = {
    "cross_attention": _cross_attention,
    "denoiser_block": _denoiser_block,
    "denoiser": _denoiser,
    "denoiser_with_tape": _denoiser_with_tape,
    "reverse_loops": _reverse_loops,
    "reverse_loops_with_states": _reverse_loops_with_states,
    "philox_normal": _philox_normal,
    "conditioning": conditioning.run,
    "conditioning_backward": conditioning.run_backward,
    "diffusion_losses": diffusion_loss.run,
    "diffusion_losses_backward": diffusion_loss.run_backward,
    **gradients.CPU,
}
_CUDA = {
    "denoiser_block": denoiser_block_cuda.run,
    "denoiser_block_backward": denoiser_block_cuda.run_backward,
    "reverse_loops": reverse_loop_cuda.run,
    "reverse_loops_with_states": reverse_loop_cuda.run_with_states,
    "reverse_loops_backward": reverse_loop_cuda.run_backward,
}
_FAKE = {
    "cross_attention": lambda q, *rest: _like(q),
    "denoiser_block": lambda x, *rest: _like(x),
    "denoiser": _fake_denoiser,
    "denoiser_with_tape": lambda x, *rest: (_fake_denoiser(x), x.new_empty(rest[-1])),
    "reverse_loops": lambda x, *rest: [_like(start) for start in x],
    "reverse_loops_with_states": _fake_loops_with_states,
    "philox_normal": lambda sample_ids, seed, modality, step, stream, count, backend=None: sample_ids.new_empty(
        (sample_ids.shape[0], count), dtype=torch.float32
    ),
    "conditioning": conditioning.allocate,
    "conditioning_backward": conditioning.allocate_backward,
    "diffusion_losses": diffusion_loss.allocate,
    "diffusion_losses_backward": diffusion_loss.allocate_backward,
    **gradients.FAKE,
}


FORMULAS = {
    "conditioning": (conditioning.formula, conditioning.setup_context),
    "conditioning_backward": (gradients.once("conditioning_backward"), None),
    "diffusion_losses": (diffusion_loss.formula, diffusion_loss.setup_context),
    "diffusion_losses_backward": (gradients.once("diffusion_losses_backward"), None),
    **gradients.FORMULAS,
}


def _without_gradient(op: str, function):
    """`function`, which refuses a call that records a gradient: an operation without a formula would give none."""

    def call(*args, **kwargs):
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(args)):
            raise BackendUnavailable(
                f"torch.ops.{NAMESPACE}.{op}: its inputs must not require a gradient, got one that does. Call the "
                "function of rohydr_fast.ops, which sees to it, or use torch.no_grad()."
            )
        return function(*args, **kwargs)

    return call


def _tensors(args) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors(arg)


def _register() -> torch.library.Library | None:
    """None when another copy of this module, imported before, has registered the operations in this process."""
    if hasattr(getattr(torch.ops, NAMESPACE), "reverse_loops"):
        return None
    library = torch.library.Library(NAMESPACE, "DEF")
    for op, schema in _SCHEMAS.items():
        library.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
        cpu, fake = _CPU[op], _FAKE[op]
        if op not in FORMULAS:
            cpu, fake = _without_gradient(op, cpu), _without_gradient(op, fake)
            library.impl(op, torch.library.fallthrough_kernel, "Autograd")  # torch's would warn, and only in backward
        library.impl(op, cpu, "CPU")
        if op in _CUDA:
            library.impl(op, _CUDA[op] if op in FORMULAS else _without_gradient(op, _CUDA[op]), "CUDA")
        torch.library.register_fake(f"{NAMESPACE}::{op}", fake, lib=library)
    for op, (formula, setup_context) in FORMULAS.items():
        torch.library.register_autograd(f"{NAMESPACE}::{op}", formula, setup_context=setup_context, lib=library)
    return library


globals().pop("LIBRARY", None)  # after importlib.reload: dropping the object takes its registrations back
LIBRARY = _register()
"""Keeps the registrations alive."""
