"""What the blocks read of the diffusion steps and of the condition, plain."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..denoiser.reference import Modulation


class Conditioning(NamedTuple):
    """What `conditioning` gives."""

    modulation: Modulation  # (R, L, 9, W) and (R, 2, W)
    cond_kv: Tensor  # (L, 2, B, S, W)

    def to(self, dtype: torch.dtype) -> "Conditioning":
        """The same in another dtype; differentiable."""
        blocks, final = self.modulation
        return Conditioning(Modulation(blocks.to(dtype), final.to(dtype)), self.cond_kv.to(dtype))


def keys_values(encoded: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """K and V (L, 2, B, S, W) of E (B, S, W) by L layers of (2 W, W) and (2 W,)."""
    pairs = [F.linear(encoded, weight, bias).chunk(2, -1) for weight, bias in zip(weights, biases, strict=True)]
    return torch.stack([torch.stack(pair) for pair in pairs]) if pairs else encoded.new_empty(0, 2, *encoded.shape)


def conditioning(
    features: Tensor, encoded: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Conditioning:
    """Shift, scale and gate of adaLN at some steps, and K and V of the condition, for all blocks.

    The time embedding is two layers, each followed by SiLU; one layer for each block, and a final one, make the
    modulation of it. K and V are W_K^(i) E and W_V^(i) E.

    Args:
        features: (R, D), a row for each step.
        encoded: E (B, S, W).
        weights: 3 + 2 L: (W, D) and (W, W) of the time embedding, L times (9 W, W) of the blocks, (2 W, W) of the final
            modulation, L times (2 W, W) of K and V.
        biases: as many; (W,), (W,), L times (9 W,), (2 W,), L times (2 W,).
    """
    time = features
    for weight, bias in zip(weights[:2], biases[:2], strict=True):
        time = F.silu(F.linear(time, weight, bias))
    layers, (rows, width) = (len(weights) - 3) // 2, time.shape
    tables = [F.linear(time, weights[i], biases[i]) for i in range(2, 3 + layers)]
    blocks = torch.stack(tables[:-1], 1) if layers else time.new_empty(rows, 0, 9 * width)
    cond_kv = keys_values(encoded, weights[3 + layers :], biases[3 + layers :])
    return Conditioning(Modulation(blocks.unflatten(-1, (9, width)), tables[-1].unflatten(-1, (2, width))), cond_kv)
