"""The conditioning in as few launches as possible, for a device: layers that read the same are one product."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import Conditioning, Modulation


def conditioning(
    features: Tensor, encoded: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Conditioning:
    """See `reference.conditioning`."""
    time = features
    for weight, bias in zip(weights[:2], biases[:2], strict=True):
        time = F.silu(F.linear(time, weight, bias))
    layers, width = (len(weights) - 3) // 2, time.shape[1]
    rows = F.linear(time, torch.cat(weights[2 : 3 + layers]), torch.cat(biases[2 : 3 + layers]))
    blocks, final = rows.split([9 * layers * width, 2 * width], 1)
    modulation = Modulation(blocks.unflatten(1, (layers, 9, width)), final.unflatten(1, (2, width)))
    if not layers:
        return Conditioning(modulation, encoded.new_empty(0, 2, *encoded.shape))
    pairs = torch.cat(weights[3 + layers :]).view(-1, width, width).mT  # (2 L, W, W)
    offsets = torch.cat(biases[3 + layers :]).view(-1, 1, width)
    both = torch.baddbmm(offsets, encoded.flatten(0, 1).expand(len(pairs), -1, -1), pairs)  # (2 L, B S, W)
    return Conditioning(modulation, both.view(layers, 2, *encoded.shape))
