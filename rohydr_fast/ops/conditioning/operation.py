"""The registered operations of the conditioning, and of its way back, for `ops.library`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _native
from ..gradients import for_inputs
from ..memory import empty
from ..packing import LAYERS, as_array, native_threads

SCHEMAS = {
    "conditioning": "(Tensor features, Tensor encoded, Tensor[] weights, Tensor[] biases) -> (Tensor, Tensor, Tensor)",
    "conditioning_backward": (
        "(Tensor of_blocks, Tensor of_final, Tensor of_kv, Tensor features, Tensor encoded, Tensor[] weights, "
        "Tensor[] biases, bool[] wanted) -> Tensor"
    ),
}
"""The way back gives, one after the other in a row, the wanted gradients of features, encoded, weights and biases."""


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
    layers = LAYERS.get("conditioning", weights + biases)
    outs = [result.numpy() for result in results]
    _native.load().conditioning(layers, as_array(features), as_array(encoded), *outs, native_threads())
    return results


def run_backward(*arguments) -> Tensor:
    """The CPU implementation."""
    *of_results, features, encoded, weights, biases, wanted = arguments
    row = empty((_size([features, encoded, *weights, *biases], wanted),), features.dtype)
    layers = LAYERS.get("conditioning", weights + biases)
    results = [as_array(tensor) for tensor in of_results]
    _native.load().conditioning_backward(
        layers, as_array(features), as_array(encoded), *results, tuple(wanted), row.numpy(), native_threads()
    )
    return row


def allocate_backward(*arguments) -> Tensor:
    """The fake implementation."""
    *_, features, encoded, weights, biases, wanted = arguments
    return features.new_empty(_size([features, encoded, *weights, *biases], wanted))


def _size(inputs: Sequence[Tensor], wanted: Sequence[bool]) -> int:
    return sum([tensor.numel() for tensor, want in zip(inputs, wanted, strict=True) if want])


def setup_context(ctx, inputs, output) -> None:
    features, encoded, weights, biases = inputs
    ctx.save_for_backward(features, encoded, *weights, *biases)


def formula(ctx, *of_results: Tensor) -> tuple:
    """The time embedding is computed once more."""
    features, encoded, *layers = ctx.saved_tensors
    weights, biases = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    if torch.is_grad_enabled() or not features.is_cpu:
        return _differentiable(ctx.needs_input_grad, of_results, features, encoded, weights, biases)
    inputs = [features, encoded, *layers]
    wanted = [*ctx.needs_input_grad[:2], *ctx.needs_input_grad[2], *ctx.needs_input_grad[3]]
    row = torch.ops.rohydr_fast.conditioning_backward(*of_results, features, encoded, weights, biases, wanted)
    # Views of the row.
    found = iter(
        torch._utils._unflatten_dense_tensors(row, [t for t, want in zip(inputs, wanted, strict=True) if want])
    )
    gradients = [next(found) if want else None for want in wanted]
    count = len(weights)
    return for_inputs(ctx, {0: gradients[0], 1: gradients[1], 2: gradients[2 : 2 + count], 3: gradients[2 + count :]})


def _differentiable(wanted: Sequence, of_results: Sequence[Tensor], features, encoded, weights, biases) -> tuple:
    """In operations of torch, which can be differentiated again."""
    want_features, want_encoded, want_weights, want_biases = wanted
    of_blocks, of_final, of_kv = of_results
    first = F.linear(features, weights[0], biases[0])
    hidden = F.silu(first)
    second = F.linear(hidden, weights[1], biases[1])
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
