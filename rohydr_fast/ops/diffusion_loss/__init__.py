"""Eq. 3 in one call, forward and backward: noise, x_t, the modulation, K and V, the network, and the loss. The
specification is `reference.py`."""

from collections.abc import Sequence

from torch import Tensor

from ..checks import check_diffusion_loss, check_members
from ..conditioning import stacked
from ..dispatch import choose, head_facts, implementation, run_reference, wanting, wants_gradient
from ..registry import BACKENDS
from . import native, reference
from .reference import COLUMNS, DenoiserWeights, ForwardSample, LossTerm, NoiseKey


def diffusion_loss(
    x_0: Tensor,
    rows: Tensor,
    position: Tensor,
    features: Tensor,
    encoded: Tensor,
    layer_weights: Sequence[Tensor],
    layer_biases: Sequence[Tensor],
    weights: DenoiserWeights,
    noise: NoiseKey,
    *,
    loss: str,
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """L_HDDM of one modality (Eq. 3), a () tensor; arguments as `reference.diffusion_loss`.

    Errors and cost are those of `diffusion_losses`.
    """
    layers = (layer_weights, layer_biases)
    term = LossTerm(
        x_0, rows, position, features, encoded, *layers, weights, noise, loss, num_heads, token_mask, key_mask
    )
    return diffusion_losses([term], backend=backend)[0]


def diffusion_losses(terms: Sequence[LossTerm], *, backend: str | None = None) -> list[Tensor]:
    """L_HDDM of several modalities (Eq. 3) at once, a () tensor for each; they share one run of the threads.

    Weights have the dtype of their term's `x_0`, or are bfloat16 and widened to it; `torch.autocast` changes nothing.
    Tokens that `token_mask` leaves out are not looked at.

    Args:
        terms: the arguments of `diffusion_loss` for each; one dtype and one device for all, other sizes may differ.
        backend: see `rohydr_fast.explain`. All but "cpp" run them one after another.

    Raises:
        UsageError: a shape, dtype or device that does not fit, or differs between terms; an empty key set, a row that
            is not finite, an unknown loss, a noise key out of range.
        BackendUnavailable: the named backend cannot run this call: one term is enough. "cpp" has no gradient with
            respect to x_0, its rows, the position, the features and bfloat16 weights, and the gradients of "cpp" and
            "triton" are differentiable once.

    Cost: one native call on "cpp", which computes the gradients too where any is wanted: a way back then only
    multiplies them by those of the losses. On "triton" the network is that of `denoiser`, and the rest is PyTorch's.
    """
    check_members("diffusion_loss", "diffusion_losses", "term", "x_0", terms, check_diffusion_loss)
    if not len(terms):
        return []
    needs_grad, grad_of = False, ()
    for term in terms:
        parameters = term.parameters()
        if wants_gradient((term.x_0, term.rows, term.position, term.features, term.encoded, *parameters)):
            given = dict(x_0=term.x_0, rows=term.rows, position=term.position, features=term.features)
            needs_grad, grad_of = True, grad_of + wanting(term.x_0, parameters, **given)
    name = choose("diffusion_loss", backend, terms[0].x_0, needs_grad, grad_of, **_heads(terms))
    if name == "cpp":
        return native.diffusion_losses(terms, needs_grad)
    return [_run(name, term) for term in terms]


def _heads(terms: Sequence[LossTerm]) -> dict:
    facts = [head_facts(term.position.shape[1], term.num_heads) for term in terms]
    dims = tuple([dim for fact in facts for dim in fact["head_dims"]])
    return {"width": max([fact["width"] for fact in facts]), "head_dims": dims}


def _run(name: str, term: LossTerm) -> Tensor:
    options = {} if term.x_0.is_cpu or name not in BACKENDS else {"condition": stacked.conditioning}
    given = term._replace(weights=term.weights.to(term.x_0.dtype))._asdict()
    x_0 = given.pop("x_0")
    if name == "triton":
        from ..denoiser.triton_impl import denoiser
        from ..triton.calls import without_padding

        options["network"], x_0 = denoiser, without_padding(x_0, term.token_mask)
    function = implementation("diffusion_loss", name, reference.diffusion_loss)
    return run_reference(function, x_0, **given, **options)


__all__ = ["COLUMNS", "DenoiserWeights", "ForwardSample", "LossTerm", "NoiseKey", "diffusion_loss", "diffusion_losses"]
