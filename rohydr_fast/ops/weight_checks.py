"""Checks of parameters, a hundred at every call. What passed is not looked at again while it lies where it did."""

import torch
from torch import Tensor

from .packing import signature
from .tensor_checks import check_shape, fail

_PASSED: dict[tuple, None] = {}  # a set in which threads may look and write at once
_PASSED_LENGTH = 256  # of 4 KB each


def check_block_weights(op: str, argument: str, weights, width: int, like: Tensor) -> None:
    """The 12 of a `BlockWeights`; the hidden width of the MLP is what its first bias says."""
    shapes = _block_shapes(width, weights.fc1_bias)
    if not _fit(weights, shapes, like):
        _name_wrong_weight(op, argument, weights._fields, weights, shapes, like)


def check_denoiser_weights(op: str, weights, layers: int, width: int, channels: int, like: Tensor) -> None:
    """The 4 + 12 L of a `DenoiserWeights`; all blocks have the hidden width of the first."""
    if len(weights.blocks) != layers:
        advice = "cond_kv must have one entry for each block."
        fail(op, "weights.blocks", f"hold {layers} blocks, as many as cond_kv", len(weights.blocks), advice)
    tensors = weights.tensors()
    passed = Passed(tensors, like, ("denoiser", layers, width, channels))
    if passed.before:
        return
    shapes = _block_shapes(width, weights.blocks[0].fc1_bias) if layers else []
    ends = [(width, channels), (width,), (2 * channels, width), (2 * channels,)]
    if _fit(tensors, ends[:2] + shapes * layers + ends[2:], like):
        passed.remember()
        return
    names = ("in_weight", "in_bias", "out_weight", "out_bias")
    _name_wrong_weight(op, "weights", names, [getattr(weights, name) for name in names], ends, like)
    for i, block in enumerate(weights.blocks):
        _name_wrong_weight(op, f"weights.blocks[{i}]", block._fields, block, shapes, like)


def check_layers(op: str, term, sizes: tuple[int, int, int], like: Tensor) -> None:
    """The layers of the conditioning of a `LossTerm`, for `sizes` (L, W, inputs)."""
    passed = Passed([*term.layer_weights, *term.layer_biases], like, ("layers", *sizes))
    if passed.before:
        return
    for name, wanted in zip(("layer_weights", "layer_biases"), conditioning_shapes(*sizes), strict=True):
        tensors = getattr(term, name)
        if not _fit(tensors, wanted, like):
            _name_wrong_weight(op, "", [f"{name}[{i}]" for i in range(len(wanted))], tensors, wanted, like)
    passed.remember()


def _block_shapes(width: int, fc1_bias: Tensor) -> list[tuple[int | None, ...]]:
    hidden = fc1_bias.shape[0] if fc1_bias.dim() == 1 else None
    square, row = (width, width), (width,)
    attention = [(3 * width, width), (3 * width,), square, row, square, row, square, row]
    return [*attention, (hidden, width), (hidden,), (width, hidden), row]


def conditioning_shapes(layers: int, width: int | None, inputs: int) -> tuple[list[tuple], list[tuple]]:
    """Of the weights and biases of `conditioning`."""
    outputs = [width, width, *[9 * width] * layers, *[2 * width] * (layers + 1)]
    return [(width, inputs), *[(rows, width) for rows in outputs[1:]]], [(rows,) for rows in outputs]


class Passed:
    """Whether parameters that lie where `tensors` do passed a check before; it asks for nothing but their layout."""

    def __init__(self, tensors: list[Tensor], like: Tensor, sizes: tuple):
        found = None if torch.compiler.is_compiling() else signature(tensors)
        self.key = None if found is None else (found, sizes, like.dtype, like.device)
        self.before = self.key in _PASSED

    def remember(self) -> None:
        """They passed."""
        if self.key is not None:
            if len(_PASSED) >= _PASSED_LENGTH:
                _PASSED.clear()
            _PASSED[self.key] = None


def _fit(weights, shapes, like: Tensor) -> bool:
    """Whether there is nothing for `_name_wrong_weight` to find: lists compared as a whole, for some 76 parameters."""
    dtypes = [weight.dtype for weight in weights]
    known = dtypes.count(like.dtype) + (dtypes.count(torch.bfloat16) if like.dtype != torch.bfloat16 else 0)
    there = [weight.device for weight in weights].count(like.device)
    dense = [weight.layout for weight in weights].count(torch.strided)
    return [weight.shape for weight in weights] == shapes and known == there == dense == len(shapes)


def _name_wrong_weight(op: str, argument: str, names, weights, shapes, like: Tensor) -> None:
    """Parameters may be bfloat16, which is widened, whatever the dtype of `like`."""
    for name, weight, shape in zip(names, weights, shapes, strict=True):
        full = f"{argument}.{name}" if argument else name
        check_shape(op, full, weight, shape)
        if weight.dtype not in (like.dtype, torch.bfloat16) or weight.device != like.device:
            also = "" if like.dtype == torch.bfloat16 else " or torch.bfloat16"
            got = f"{weight.dtype} on {weight.device}"
            fail(op, full, f"be {like.dtype}{also} on {like.device}", got, "Convert it with .to().")
