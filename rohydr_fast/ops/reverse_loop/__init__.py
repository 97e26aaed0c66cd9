"""The whole reverse diffusion of one or more modalities in one call. The specification is `reference.py`."""

from collections.abc import Callable, Sequence
from operator import index

import torch
from torch import Tensor

from ..checks import check_chain, check_members
from ..dispatch import choose, implementation, run_reference, wanting, wants_gradient
from . import cuda, native, reference
from .reference import Chain, DenoiserWeights, Modulation, NoiseKey


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
    backend: str | None = None,
    max_memory: int | None = None,
) -> Tensor:
    """All K steps of Eq. 2, from x_K to x_0; shapes in `reference.reverse_loop`.

    Weights have the dtype of `x`, or are bfloat16 and widened to it; `torch.autocast` changes nothing. Tokens that
    `token_mask` leaves out hold numbers without meaning, and what is asked of their gradient is not looked at.
    `max_memory` is that of `reverse_loops`.

    Raises:
        UsageError: a shape, dtype or device that does not fit, tables of unequal length, an empty key set, a
            coefficient on the CPU that is not finite, a noise key out of range, a negative `grad_steps`, too little
            memory.
        BackendUnavailable: the named backend cannot run this call; "cpp" and "cuda" have no gradient with respect to
            the position, the coefficients and bfloat16 weights of another `x`, and the gradients of all backends but
            the reference are differentiable once.

    Cost: one native call on "cpp" and one for all gradients; the weights are packed at the first call and again
    whenever they changed. On "triton", without a gradient, one launch of a CUDA graph for each step. On "cuda" see
    `reverse_loops`.
    """
    chain = Chain(
        x, position, modulation, cond_kv, weights, coefficients, noise, num_heads, token_mask, key_mask, grad_steps
    )
    return reverse_loops([chain], backend=backend, max_memory=max_memory)[0]


def reverse_loops(
    chains: Sequence[Chain], *, backend: str | None = None, max_memory: int | None = None
) -> list[Tensor]:
    """Several independent reverse loops (Eq. 2) at once: all modalities of a batch share one run of the threads.

    Args:
        chains: the arguments of `reverse_loop` for each; one dtype and one device for all, other sizes may differ.
        backend: see `rohydr_fast.explain`. All but "cpp" run them one after another.
        max_memory: bytes that "cpp" may keep for the way back; None is any number. Where they suffice for all chains
            it keeps what each layer computed, else x_t of every step, and computes the rest again. The others keep
            everything and do not look at this.

    Returns:
        (B, T, C) of each chain, the same numbers as `reverse_loop` gives on the same backend.

    Raises:
        UsageError: as `reverse_loop`, with the number of the chain; dtypes or devices that differ between chains.
        BackendUnavailable: the named backend cannot run this call: one chain is enough.

    Cost: one native call on "cpp", and one for all gradients; on "cuda" a launch for up to three chains, and two for
    each that bring its weights and condition into the order of use; x_t of every step is kept for the gradients of a
    chain, which compute the rest again, in four launches for every few steps.
    """
    _check(chains)
    if not len(chains):
        return []
    chains = [_without_dead_ends(chain) for chain in chains]
    grad_steps = [_grad_steps(chain) if wants_gradient(chain.tensors()) else 0 for chain in chains]
    grad_of = ()
    for chain, steps in zip(chains, grad_steps, strict=True):
        if steps:
            tables = dict(position=chain.position, coefficients=chain.coefficients)
            grad_of += wanting(chain.x, chain.weights.tensors(), **tables)
    name = _choose(chains, backend, any(grad_steps), grad_of)
    if name in ("cpp", "cuda"):
        return native.reverse_loops(chains, grad_steps, max_memory)
    if name == "triton":
        from . import graphed

        return [graphed.reverse_loop(chain, steps) for chain, steps in zip(chains, grad_steps, strict=True)]
    function = implementation("reverse_loop", name, reference.reverse_loop)
    return [_run(function, chain) for chain in chains]


@torch.no_grad()
def first_undefined_steps(chains: Sequence[Chain], *, backend: str | None = None) -> list[int | None]:
    """Run the chains again, and see where their numbers leave the finite ones: `first_undefined_step` of each.

    Arguments and errors as `reverse_loops`. Padded tokens are not looked at. For a backend that was registered the
    reference runs.
    """
    _check(chains)
    name = _choose(chains, backend, False, ()) if len(chains) else "reference"
    if name in ("cpp", "cuda"):
        runs = native.trajectories(chains)
    elif name == "triton":
        from . import graphed

        runs = [graphed.trajectory(chain) for chain in chains]
    else:
        runs = [_reference_trajectory(chain) for chain in chains]
    steps = []
    for chain, (states, x_0) in zip(chains, runs, strict=True):
        real = slice(None) if chain.token_mask is None else chain.token_mask
        steps.append(first_undefined_step(states[:, real], x_0[real]))
    return steps


def first_undefined_step(states: Tensor, x_0: Tensor) -> int | None:
    """The first step of Eq. 2 whose result is not finite.

    Args:
        states: (K, ...) x_t of every step: `states[i - 1]` is what step i starts from.
        x_0: (...) the result of step 1.

    Returns:
        i in K..1; K + 1 when x_K itself is not finite; None when everything is.
    """
    finite = torch.stack([x_0, *states]).isfinite().flatten(1).all(1)  # (K + 1,), row i - 1 the result of step i
    return None if bool(finite.all()) else int((~finite).nonzero()[-1, 0]) + 1


def _check(chains: Sequence[Chain]) -> None:
    check_members("reverse_loop", "reverse_loops", "chain", "x", chains, check_chain)


def _choose(chains: Sequence[Chain], backend: str | None, needs_grad: bool, grad_of: tuple[str, ...]) -> str:
    widths = [index(chain.position.shape[1]) for chain in chains]  # numbers in a traced graph too
    head_dims = tuple([index(width // chain.num_heads) for width, chain in zip(widths, chains, strict=True)])
    x = chains[0].x
    sizes = {"width": max(widths), "head_dims": head_dims}
    if any([reference.has_history(chain.coefficients) for chain in chains]):
        sizes["history"] = True
    if x.is_cuda:  # others have no such limits, and numbers here would be fixed in a traced graph
        sizes["loops"] = tuple(
            [
                cuda.sizes_of(chain.x, chain.position, chain.weights.tensors(), chain.num_heads)
                for chain in chains
                if chain.x.numel()
            ]
        )
    return choose("reverse_loop", backend, x, needs_grad, grad_of, **sizes)


def _grad_steps(chain: Chain) -> int:
    """How many of the last steps carry a gradient: `grad_steps` as a number from 0 to K."""
    steps = chain.coefficients.shape[0]
    return steps if chain.grad_steps is None else min(chain.grad_steps, steps)


def _without_dead_ends(chain: Chain) -> Chain:
    """x_K has no gradient where it does not run through all steps."""
    return chain if _grad_steps(chain) == chain.coefficients.shape[0] else chain._replace(x=chain.x.detach())


def _run(function: Callable, chain: Chain, **options) -> Tensor:
    return run_reference(
        function,
        chain.x,
        chain.position,
        chain.modulation,
        chain.cond_kv,
        chain.weights.to(chain.x.dtype),
        chain.coefficients,
        chain.noise,
        num_heads=chain.num_heads,
        token_mask=chain.token_mask,
        key_mask=chain.key_mask,
        grad_steps=chain.grad_steps,
        **options,
    )


def _reference_trajectory(chain: Chain) -> tuple[Tensor, Tensor]:
    states: list[Tensor] = []
    x_0 = _run(reference.reverse_loop, chain, states=states)
    return torch.stack(states[::-1]), x_0


__all__ = [
    "Chain",
    "DenoiserWeights",
    "Modulation",
    "NoiseKey",
    "first_undefined_step",
    "first_undefined_steps",
    "reverse_loop",
    "reverse_loops",
]
