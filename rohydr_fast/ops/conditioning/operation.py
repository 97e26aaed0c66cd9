"""The registered operation of the conditioning, and its way back, for `ops.library`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _native
from ..memory import empty
from ..packing import as_array, native_threads

SCHEMA = "(Tensor features, Tensor encoded, Tensor[] weights, Tensor[] biases) -> (Tensor, Tensor, Tensor)"


def sizes(features: Tensor, encoded: Tensor, weights: list[Tensor]) -> tuple[tuple[int, ...], ...]:
    """Shapes of the results."""
    rows, width, layers = features.shape[0], weights[0].shape[0], (len(weights) - 3) // 2
    return (rows, layers, 9, width), (rows, 2, width), (layers, 2, *encoded.shape)


def allocate(features: Tensor, encoded: Tensor, weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, ...]:
    """The fake implementation."""
    return tuple([features.new_empty(size) for size in sizes(features, encoded, weights)])


def run(features: Tensor, encoded: Tensor, weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, ...]:
    """The CPU implementation."""
    results = tuple([empty(size, features.dtype) for size in sizes(features, encoded, weights)])
    layers = tuple([as_array(weight) for weight in weights]), tuple([as_array(bias) for bias in biases])
    outs = [result.numpy() for result in results]
    _native.load().conditioning(as_array(features), as_array(encoded), *layers, *outs, native_threads())
    return results


def setup_context(ctx, inputs, output) -> None:
    features, encoded, weights, biases = inputs
    ctx.save_for_backward(features, encoded, *weights, *biases[:2])


def formula(ctx, of_blocks: Tensor, of_final: Tensor, of_kv: Tensor) -> tuple:
    """In operations of torch, which can be differentiated again; the time embedding is computed once more."""
    features, encoded, *weights, first_bias, second_bias = ctx.saved_tensors
    want_features, want_encoded, want_weights, want_biases = ctx.needs_input_grad
    first = F.linear(features, weights[0], first_bias)
    hidden = F.silu(first)
    second = F.linear(hidden, weights[1], second_bias)
    layers, width = len(of_kv), encoded.shape[-1]
    modulated, projected = weights[2 : 3 + layers], weights[3 + layers :]
    tables = torch.cat([of_blocks.flatten(1), of_final.flatten(1)], 1)  # (R, L 9 W + 2 W), those of a layer together
    sizes = [len(weight) for weight in modulated]
    of_time = sum([g @ w for g, w in zip(tables.split(sizes, 1), modulated, strict=True)])
    of_second = of_time * _silu_slope(second)
    of_first = (of_second @ weights[1]) * _silu_slope(first)
    of_weights = [of_first.mT @ features, of_second.mT @ hidden, *(tables.mT @ F.silu(second)).split(sizes)]
    of_weights = [g if w else None for g, w in zip(of_weights, want_weights[: 3 + layers], strict=True)]
    of_biases = [of_first.sum(0), of_second.sum(0), *tables.sum(0).split(sizes)]
    of_biases = [g if w else None for g, w in zip(of_biases, want_biases[: 3 + layers], strict=True)]
    rows, of_both = encoded.flatten(0, 1), of_kv.flatten(0, 1).flatten(1, 2)  # (B S, W), and K and V as (2 L, B S, W)
    of_pairs = torch.bmm(of_both.mT, rows.expand(2 * layers, *rows.shape)).view(layers, 2 * width, width)
    of_weights += [g if w else None for g, w in zip(of_pairs.unbind(), want_weights[3 + layers :], strict=True)]
    offsets = of_both.sum(1).view(layers, 2 * width)
    of_biases += [g if w else None for g, w in zip(offsets.unbind(), want_biases[3 + layers :], strict=True)]
    of_encoded = None
    if want_encoded:
        factors = torch.stack(projected).view(2 * layers, width, width) if layers else rows.new_empty(0, width, width)
        of_encoded = torch.addbmm(torch.zeros_like(rows), of_both, factors).view(encoded.shape)
    return of_first @ weights[0] if want_features else None, of_encoded, of_weights, of_biases


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))
