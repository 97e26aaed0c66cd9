"""The registered operation of linear layers, and its way back, for `ops.library`."""

import torch
from torch import Tensor

from ... import _native
from ..packing import as_array, native_threads

SCHEMA = "(Tensor x, Tensor[] weights, Tensor[] biases, int parts, bool rows_first) -> Tensor"


def allocate(x: Tensor, weights: list[Tensor], biases: list[Tensor], parts: int, rows_first: bool) -> Tensor:
    """The result without content; the fake implementation."""
    count, columns = len(weights) * parts, weights[0].shape[0] // parts
    return x.new_empty((x.shape[0], count, columns) if rows_first else (count, x.shape[0], columns))


def run(x: Tensor, weights: list[Tensor], biases: list[Tensor], parts: int, rows_first: bool) -> Tensor:
    """The CPU implementation."""
    out = allocate(x, weights, biases, parts, rows_first)
    if out.numel():
        arrays = tuple([as_array(weight) for weight in weights]), tuple([as_array(bias) for bias in biases])
        _native.load().linears(as_array(x), *arrays, parts, rows_first, out.numpy(), native_threads())
    return out


def setup_context(ctx, inputs, output) -> None:
    x, weights, _, ctx.parts, ctx.rows_first = inputs
    ctx.save_for_backward(x, *weights)


def formula(ctx, out_gradient: Tensor) -> tuple:
    """In operations of torch, which can be differentiated again."""
    x, *weights = ctx.saved_tensors
    pieces = out_gradient.unbind(1 if ctx.rows_first else 0)
    layers = [pieces[i : i + ctx.parts] for i in range(0, len(pieces), ctx.parts)]
    gradients = [layer[0] if ctx.parts == 1 else torch.cat(layer, -1) for layer in layers]  # (R, P C) each
    of_x = None
    if ctx.needs_input_grad[0]:
        of_x = sum([gradient @ weight for gradient, weight in zip(gradients, weights, strict=True)])
    wanted = zip(gradients, *ctx.needs_input_grad[1:3], strict=True)
    of_layers = [(g.mT @ x if weight else None, g.sum(0) if bias else None) for g, weight, bias in wanted]
    of_weights, of_biases = zip(*of_layers, strict=True)
    return of_x, list(of_weights), list(of_biases), None, None
