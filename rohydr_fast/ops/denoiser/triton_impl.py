"""The network once by the Triton kernels. Arguments are those of the package's public function, already checked."""

from torch import Tensor

from ..dispatch import wants_gradient
from ..triton.calls import current_device, without_padding
from ..triton.operations import triton_block, triton_embedding, triton_head
from .reference import DenoiserWeights, Modulation


def denoiser(
    x: Tensor,
    position: Tensor,
    modulation: Modulation,
    cond_kv: Tensor,
    weights: DenoiserWeights,
    *,
    num_heads: int,
    token_mask: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(B, T, C) twice, see `reference.denoiser`; zeros at tokens that `token_mask` leaves out."""
    both = network(x, position, modulation, cond_kv, weights, num_heads, token_mask, key_mask)
    prediction, v = without_padding(both, token_mask).chunk(2, -1)
    return prediction, v


def network(
    x: Tensor,
    position: Tensor,
    modulation: Modulation,
    cond_kv: Tensor,
    weights: DenoiserWeights,
    num_heads: int,
    token_mask: Tensor | None,
    key_mask: Tensor | None,
) -> Tensor:
    """The prediction and v side by side, (B, T, 2 C); what `token_mask` leaves out holds numbers without meaning."""
    weights = weights.to(x.dtype)
    blocks, final = modulation if modulation.final.dim() == 3 else [part[None] for part in modulation]
    with current_device(x):
        x = without_padding(x, token_mask)
        h = triton_embedding(x, weights.in_weight, weights.in_bias, position)
        for layer, (block, kv) in enumerate(zip(weights.blocks, cond_kv, strict=True)):
            rows, parameters = blocks[:, layer], list(block)
            keep = wants_gradient((h, rows, kv, *parameters))
            h = triton_block(h, rows, kv, parameters, num_heads, token_mask, key_mask, keep)[0]
        return triton_head(h, final, weights.out_weight, weights.out_bias)
