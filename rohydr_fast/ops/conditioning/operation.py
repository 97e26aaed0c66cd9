"""The registered operation of the conditioning, and its way back, for `ops.library`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _native
from ..packing import as_array, native_threads

SCHEMA = "(Tensor features, Tensor encoded, Tensor[] weights, Tensor[] biases) -> (Tensor, Tensor, Tensor)"


def allocate(features: Tensor, encoded: Tensor, weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, ...]:
    """The results without content; the fake implementation."""
    rows, width, layers = features.shape[0], weights[0].shape[0], (len(weights) - 3) // 2
    sizes = (rows, layers, 9, width), (rows, 2, width), (layers, 2, *encoded.shape)
    return tuple([features.new_empty(size) for size in sizes])


def run(features: Tensor, encoded: Tensor, weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, ...]:
    """The CPU implementation."""
    results = allocate(features, encoded, weights, biases)
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
    tables = [*of_blocks.flatten(2).unbind(1), of_final.flatten(1)]  # each (R, 9 W), the last (R, 2 W)
    pairs = [torch.cat(pair.unbind(), -1).flatten(0, 1) for pair in of_kv.unbind()]  # each (B S, 2 W)
    modulated, projected = weights[2 : 2 + len(tables)], weights[2 + len(tables) :]
    of_second = sum([g @ w for g, w in zip(tables, modulated, strict=True)]) * _silu_slope(second)
    of_first = (of_second @ weights[1]) * _silu_slope(first)
    outputs = [of_first, of_second, *tables, *pairs]
    inputs = [features, hidden, *[F.silu(second)] * len(tables), *[encoded.flatten(0, 1)] * len(pairs)]
    of_weights = [g.mT @ x if wanted else None for g, x, wanted in zip(outputs, inputs, want_weights, strict=True)]
    of_biases = [g.sum(0) if wanted else None for g, wanted in zip(outputs, want_biases, strict=True)]
    of_encoded = None
    if want_encoded:
        of_encoded = torch.zeros_like(encoded)
        for g, w in zip(pairs, projected, strict=True):
            of_encoded = of_encoded + (g @ w).view(encoded.shape)
    return of_first @ weights[0] if want_features else None, of_encoded, of_weights, of_biases


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))
