"""Checks of shape, dtype and device that every backend of an op relies on; each failure is one sentence.

They run in front of every call: a message is made only for a call that fails.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..config import LOSSES
from ..errors import UsageError
from .tensor_checks import SEE, Stranger, check_dense, check_like, check_shape, fail, what
from .weight_checks import Passed, check_block_weights, check_denoiser_weights, check_layers, conditioning_shapes

SEED_END = 2**64
SAMPLE_ID_END = 2**48
MODALITY_END = 2**8

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _names_strangers(check: Callable) -> Callable:
    """`check`, which takes its arguments for what they should be: where that fails, which one is something else."""
    parameters = list(inspect.signature(check).parameters)

    @functools.wraps(check)
    def checked(op: str, *args, **options) -> None:
        try:
            check(op, *args, **options)
        except UsageError:
            raise
        except Exception as error:
            given = dict(zip(parameters[1:], args, strict=False)) | options
            for name in ("chain", "term"):
                if name in given:
                    given = given[name]._asdict()
            for name, value in given.items():
                _name_stranger(op, name, value)
            advice = "Compare them with the op's docstring."
            fail(op, "the arguments", "be of the kinds that it takes", f"{type(error).__name__}: {error}", advice)

    return checked


_NUMBERS = ("num_heads", "grad_steps", "seed", "modality", "loss")
_OPTIONAL = ("token_mask", "key_mask", "grad_steps")
_TUPLES = {"weights": "BlockWeights or DenoiserWeights", "noise": "NoiseKey"}


def _name_stranger(op: str, name: str, value: object) -> None:
    """Refuse what is no dense tensor, down to the members of tuples and lists."""
    last = name.rpartition(".")[2]
    if value is None and last in _OPTIONAL:
        return
    if last in _NUMBERS:
        if last != "loss" and not isinstance(value, int | np.integer):
            fail(op, name, "be an integer", repr(value), "Convert it.")
    elif hasattr(value, "_fields"):
        for field in value._fields:
            _name_stranger(op, f"{name}.{field}", getattr(value, field))
    elif name in _TUPLES and not isinstance(value, list):
        fail(op, name, f"be a {_TUPLES[name]}", type(value).__name__, SEE)
    elif isinstance(value, list | tuple):
        for i, member in enumerate(value):
            _name_stranger(op, f"{name}[{i}]", member)
    elif not isinstance(value, Tensor):
        fail(op, name, "be a tensor", type(value).__name__, SEE)
    elif value.is_nested or value.layout is not torch.strided:
        got = "a nested one" if value.is_nested else value.layout
        fail(op, name, "be a dense tensor", got, "Use .to_dense(), or pad it.")


def check_heads(op: str, width: int, num_heads: int) -> None:
    """The width must divide into the heads."""
    if not isinstance(num_heads, int | np.integer):
        raise Stranger
    if num_heads < 1 or width % num_heads != 0:
        advice = "Choose a width that is a multiple of the number of heads."
        fail(op, "num_heads", f"divide the width {width}", num_heads, advice)


def check_mask(op: str, argument: str, mask: Tensor | None, shape: tuple[int, int], like: Tensor) -> None:
    """A mask is None or a bool tensor of `shape` on the device of `like`."""
    if mask is None:
        return
    check_dense(mask)
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        got = f"{mask.dtype} with shape {tuple(mask.shape)}"
        fail(op, argument, f"be bool with shape {shape}", got, "True marks what exists.")
    if mask.device != like.device:
        fail(op, argument, f"be on {like.device}", mask.device, "Move it with .to().")


@_names_strangers
def check_attention(op: str, q: Tensor, k: Tensor, v: Tensor, num_heads: int, key_mask: Tensor | None) -> None:
    """Queries (B, T, W), keys and values (B, S, W), S >= 1, mask (B, S)."""
    _check_float(op, "q", q, "(B, T, W)")
    batch, _, width = q.shape
    check_heads(op, width, num_heads)
    check_like(op, "k", k, (batch, None, width), q)
    check_like(op, "v", v, (batch, k.shape[1], width), q)
    _check_keys(op, k.shape[1])
    check_mask(op, "key_mask", key_mask, (batch, k.shape[1]), q)


@_names_strangers
def check_block(op, x, modulation, cond_kv, weights, num_heads, token_mask, key_mask) -> None:
    """Tokens (B, T, W), modulation (9, W) or (B, 9, W), condition (2, B, S, W), S >= 1, masks (B, T) and (B, S)."""
    _check_float(op, "x", x, "(B, T, W)")
    batch, tokens, width = x.shape
    check_heads(op, width, num_heads)
    rows = (modulation.shape[0] if modulation.shape[0] == 1 else batch,) if modulation.dim() == 3 else ()
    check_like(op, "modulation", modulation, (*rows, 9, width), x)
    check_like(op, "cond_kv", cond_kv, (2, batch, None, width), x)
    _check_keys(op, cond_kv.shape[2])
    check_block_weights(op, "weights", weights, width, x)
    check_mask(op, "token_mask", token_mask, (batch, tokens), x)
    check_mask(op, "key_mask", key_mask, (batch, cond_kv.shape[2]), x)


@_names_strangers
def check_denoiser(op, x, position, modulation, cond_kv, weights, num_heads, token_mask, key_mask) -> None:
    """What `denoiser.reference.denoiser` says of its arguments; modulation of one row, or of 1 or B."""
    _check_float(op, "x", x, "(B, T, C)")
    rows = ()
    if modulation.final.dim() == 3:
        rows = (modulation.final.shape[0] if modulation.final.shape[0] == 1 else x.shape[0],)
    _check_network(op, x, position, modulation, rows, cond_kv, weights, num_heads, token_mask, key_mask)


@_names_strangers
def check_conditioning(op: str, features: Tensor, encoded: Tensor, weights, biases) -> None:
    """What `conditioning.reference.conditioning` says of its arguments."""
    check_dense(features)
    if features.dim() != 2 or not features.is_floating_point():
        fail(op, "features", "be (R, D) of a float dtype", what(features), "Add a dimension, or convert it.")
    count = len(weights)
    if len(biases) != count or count < 3 or count % 2 == 0:
        got = f"{count} and {len(biases)}"
        fail(op, "weights and biases", "be 3 + 2 L each, for L blocks", got, "Pass one bias for each weight.")
    width = weights[0].shape[0] if weights[0].dim() == 2 else None
    check_shape(op, "weights[0]", weights[0], (width, features.shape[1]))
    check_like(op, "encoded", encoded, (None, None, width), features)
    passed = Passed([*weights, *biases], features, ("conditioning", count, width, features.shape[1]))
    if passed.before:
        return
    shapes = conditioning_shapes((count - 3) // 2, width, features.shape[1])
    for name, tensors, wanted in (("weights", weights, shapes[0]), ("biases", biases, shapes[1])):
        facts = [(tensor.dtype, tensor.device, tensor.layout) for tensor in tensors]
        known = facts.count((features.dtype, features.device, torch.strided))
        if [t.shape for t in tensors] != wanted or known != count:
            for i, tensor in enumerate(tensors):
                check_like(op, f"{name}[{i}]", tensor, wanted[i], features)
    passed.remember()


@_names_strangers
def check_chain(op: str, chain) -> None:
    """What `reverse_loop.reference.reverse_loop` says of its arguments, `chain` a `Chain` of that module."""
    _check_float(op, "x", chain.x, "(B, T, C)")
    rows = (_check_coefficients(op, chain.coefficients),)
    network = (chain.cond_kv, chain.weights, chain.num_heads, chain.token_mask, chain.key_mask)
    _check_network(op, chain.x, chain.position, chain.modulation, rows, *network)
    _check_noise(op, chain.noise, chain.x.shape[0])
    if chain.grad_steps is not None and chain.grad_steps < 0:
        fail(op, "grad_steps", "be 0 or more", chain.grad_steps, "Use None for all steps.")


def check_members(op: str, ops: str, kind: str, argument: str, members: Sequence, check: Callable) -> None:
    """`check` each of the calls that `ops` takes at once; one alone is a call of `op`. They share a dtype and a device.

    Args:
        kind: what a member is called.
        argument: its tensor that says the dtype and the device.
    """
    for i, member in enumerate(members):
        name = op if len(members) == 1 else f"{ops}, {kind} {i}"
        check(name, member)
        tensor, first = getattr(member, argument), getattr(members[0], argument)
        if tensor.dtype != first.dtype or tensor.device != first.device:
            got = f"{tensor.dtype} on {tensor.device}"
            wanted = f"be {first.dtype} on {first.device} as in {kind} 0"
            fail(name, argument, wanted, got, "Make a call for each dtype.")


@_names_strangers
def check_diffusion_loss(op: str, term) -> None:
    """What `diffusion_loss.reference.diffusion_loss` says of its arguments, `term` a `LossTerm` of that module."""
    x_0, encoded, features = term.x_0, term.encoded, term.features
    _check_float(op, "x_0", x_0, "(B, T, C)")
    batch, tokens, channels = x_0.shape
    if term.loss not in LOSSES:
        fail(op, "loss", f"be one of {', '.join(LOSSES)}", repr(term.loss), "Choose one of these.")
    check_like(op, "rows", term.rows, (batch, 11), x_0)
    _check_finite(op, "rows", term.rows, "Use DiffusionProcess.rows.")
    check_like(op, "encoded", encoded, (batch, None, None), x_0)
    keys, width = encoded.shape[1:]
    check_heads(op, width, term.num_heads)
    _check_keys(op, keys)
    check_like(op, "position", term.position, (tokens, width), x_0)
    check_shape(op, "features", features, (1 if features.shape[:1] == (1,) else batch, None))
    dtype = torch.promote_types(x_0.dtype, torch.float32)
    if features.dtype != dtype or features.device != x_0.device:
        got = f"{features.dtype} on {features.device}"
        fail(op, "features", f"be {dtype} on {x_0.device}", got, "Convert it with .to().")
    layers = len(term.weights.blocks)
    if len(term.layer_weights) != 3 + 2 * layers or len(term.layer_biases) != 3 + 2 * layers:
        got = f"{len(term.layer_weights)} and {len(term.layer_biases)}"
        advice = "Pass one bias for each weight."
        fail(op, "layer_weights and layer_biases", f"be {3 + 2 * layers} each, for {layers} blocks", got, advice)
    check_denoiser_weights(op, term.weights, layers, width, channels, x_0)
    check_layers(op, term, (layers, width, features.shape[1]), x_0)
    check_mask(op, "token_mask", term.token_mask, (batch, tokens), x_0)
    check_mask(op, "key_mask", term.key_mask, (batch, keys), x_0)
    _check_noise(op, term.noise, batch)


def _check_network(op, x, position, modulation, rows, cond_kv, weights, num_heads, token_mask, key_mask) -> None:
    """Everything of a denoiser but the rank of `x`; `rows` are the leading sizes of its modulation."""
    if cond_kv.dim() != 5:
        fail(op, "cond_kv", "be (L, 2, B, S, W)", what(cond_kv), "Stack the blocks' K and V.")
    batch, tokens, channels = x.shape
    layers, width = cond_kv.shape[0], cond_kv.shape[4]
    check_heads(op, width, num_heads)
    check_like(op, "cond_kv", cond_kv, (layers, 2, batch, None, width), x)
    _check_keys(op, cond_kv.shape[3])
    check_like(op, "position", position, (tokens, width), x)
    check_like(op, "modulation.blocks", modulation.blocks, (*rows, layers, 9, width), x)
    check_like(op, "modulation.final", modulation.final, (*rows, 2, width), x)
    check_denoiser_weights(op, weights, layers, width, channels, x)
    check_mask(op, "token_mask", token_mask, (batch, tokens), x)
    check_mask(op, "key_mask", key_mask, (batch, cond_kv.shape[3]), x)


def _check_float(op: str, argument: str, tensor: Tensor, letters: str) -> None:
    check_dense(tensor)
    if tensor.dim() != 3 or not tensor.is_floating_point():
        fail(op, argument, f"be {letters} of a float dtype", what(tensor), "Add a dimension, or convert it.")


def _check_keys(op: str, keys: int) -> None:
    if keys < 1:
        fail(op, "the condition", "have at least one key", keys, "Give it at least one available modality.")


def _check_coefficients(op: str, coefficients: Tensor) -> int:
    """The number of steps K >= 1 of a finite table (K, 4), or (K, 8) with a history."""
    advice = "Use Schedule.table(K) with K >= 1."
    check_dense(coefficients)
    if coefficients.dim() != 2 or coefficients.shape[1] not in (4, 8) or not coefficients.is_floating_point():
        fail(op, "coefficients", "be (K, 4) or (K, 8) of a float dtype", what(coefficients), advice)
    if coefficients.shape[0] < 1:
        fail(op, "coefficients", "have at least one step", coefficients.shape[0], advice)
    _check_finite(op, "coefficients", coefficients, "Use Schedule.table.")
    return coefficients.shape[0]


def _check_finite(op: str, argument: str, table: Tensor, advice: str) -> None:
    """No row of `table` (R, n) may hold an infinity or NaN."""
    # A compiled graph cannot ask for values, and a device would have to be waited for; the result then shows NaN.
    if torch.compiler.is_compiling() or not table.is_cpu:
        return
    # The sum is finite when all are, but for an overflow, and costs a quarter of the exact question.
    if math.isfinite(table.sum().item()):
        return
    if not bool(table.isfinite().all()):
        row = int((~table.isfinite()).any(1).nonzero()[0, 0])
        fail(op, argument, "be finite", f"{table[row].tolist()} in row {row}", advice)


def _check_noise(op: str, noise, batch: int) -> None:
    """A `NoiseKey` for `batch` samples."""
    ids = noise.sample_ids
    if isinstance(ids, Tensor):
        check_dense(ids)
    if not isinstance(ids, Tensor) or ids.dtype not in _INTEGERS or tuple(ids.shape) != (batch,):
        got = what(ids) if isinstance(ids, Tensor) else type(ids).__name__
        fail(op, "noise.sample_ids", f"be an integer tensor ({batch},)", got, "Give one id for each sample of x.")
    if not torch.compiler.is_compiling() and batch:
        numbers = ids.tolist()
        low, high = min(numbers), max(numbers)
        if low < 0 or high >= SAMPLE_ID_END:
            got = low if low < 0 else high
            fail(op, "noise.sample_ids", f"be in [0, {SAMPLE_ID_END - 1}]", got, "Use data.dataset.stable_sample_id.")
    for name, value, end in (("seed", noise.seed, SEED_END), ("modality", noise.modality, MODALITY_END)):
        if not isinstance(value, (int, np.integer)) or not 0 <= value < end:
            advice = "Choose one in that range."
            fail(op, f"noise.{name}", f"be an integer in [0, {end - 1}]", repr(value), advice)
