"""The whole reverse diffusion of one or more modalities in one call. The specification is `reference.py`."""

from collections.abc import Sequence

from torch import Tensor

from ..checks import check_chain, fail
from ..dispatch import choose, wants_gradient
from . import native, reference
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
) -> Tensor:
    """All K steps of Eq. 2, from x_K to x_0; shapes in `reference.reverse_loop`.

    Weights have the dtype of `x`, or are bfloat16 and widened to it. Tokens that `token_mask` leaves out hold numbers
    without meaning.

    Raises:
        UsageError: a shape, dtype or device that does not fit, tables of unequal length, an empty key set, a
            coefficient that is not finite, a noise key out of range, a negative `grad_steps`.
        BackendUnavailable: the named backend cannot run this call.

    Cost: one native call on "cpp"; the weights are packed at the first call and again whenever they changed.
    """
    chain = Chain(
        x, position, modulation, cond_kv, weights, coefficients, noise, num_heads, token_mask, key_mask, grad_steps
    )
    check_chain("reverse_loop", chain)
    return _run([chain], backend)[0]


def reverse_loops(chains: Sequence[Chain], *, backend: str | None = None) -> list[Tensor]:
    """Several independent reverse loops (Eq. 2) at once: all modalities of a batch share one run of the threads.

    Args:
        chains: the arguments of `reverse_loop` for each; one dtype and one device for all, other sizes may differ.
        backend: see `rohydr_fast.explain`. The reference runs them one after another.

    Returns:
        (B, T, C) of each chain, the same numbers as `reverse_loop` gives on the same backend.

    Raises:
        UsageError: as `reverse_loop`, with the number of the chain; dtypes or devices that differ between chains.
        BackendUnavailable: the named backend cannot run this call; one chain that wants a gradient is enough.

    Cost: one native call on "cpp".
    """
    for i, chain in enumerate(chains):
        op = "reverse_loop" if len(chains) == 1 else f"reverse_loops, chain {i}"
        check_chain(op, chain)
        first = chains[0].x
        if chain.x.dtype != first.dtype or chain.x.device != first.device:
            got = f"{chain.x.dtype} on {chain.x.device}"
            fail(op, "x", f"be {first.dtype} on {first.device} as in chain 0", got, "Make a call for each dtype.")
    return _run(chains, backend) if len(chains) else []


def _run(chains: Sequence[Chain], backend: str | None) -> list[Tensor]:
    needs_grad = any([chain.grad_steps != 0 and wants_gradient(chain.tensors()) for chain in chains])
    if choose("reverse_loop", backend, chains[0].x, needs_grad) == "cpp":
        return native.reverse_loops(chains)
    return [_run_reference(chain) for chain in chains]


def _run_reference(chain: Chain) -> Tensor:
    return reference.reverse_loop(
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
    )


__all__ = ["Chain", "DenoiserWeights", "Modulation", "NoiseKey", "reverse_loop", "reverse_loops"]
