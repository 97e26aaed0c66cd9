"""Arithmetic and comparisons. Functions that a device approximates are exact here, but for tanh.approx, which is as
inaccurate as the ISA allows."""

import operator

import numpy as np

from . import types
from .errors import Unsupported
from .handlers import instruction
from .packed import PACKED, packed
from .parser import Pair, Register


def _sources(machine, it, type_name: str, count: int, start: int = 1) -> list:
    values = [machine.value(operand, type_name) for operand in it.operands[start : start + count]]
    return [types.flush(value) for value in values] if it.has("ftz") and type_name == "f32" else values


def finish(machine, it, values, type_name: str, active) -> None:
    """Write a result after the modifiers .sat, .ftz and .relu."""
    if types.is_float(type_name):
        if it.has("sat"):
            values = np.where(np.isnan(values), 0, np.clip(values, 0, 1)).astype(np.asarray(values).dtype)
        if it.has("relu"):
            values = np.where(values > 0, values, np.asarray(values).dtype.type(0))
        if it.has("ftz") and type_name == "f32":
            values = types.flush(values)
    machine.write(it.operands[0], values, type_name, active)


_BINARY = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
_LOGICAL = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


@instruction("add", "sub", "mul")
def _binary(machine, it, active):
    function, name = _BINARY[it.opcode], it.type
    if name in PACKED:
        return packed(machine, it, active, function)
    if it.has("cc"):
        raise Unsupported(f"{it.text}: carries")
    if it.has("wide", "hi"):
        return _wide(machine, it, active)
    a, b = _sources(machine, it, name, 2)
    return finish(machine, it, function(a, b), name, active)


@instruction("mad", "fma")
def _multiply_add(machine, it, active):
    name = it.type
    if name in PACKED:
        return packed(machine, it, active, lambda a, b, c: a.astype(np.float64) * b + c)
    if it.has("wide", "hi"):
        return _wide(machine, it, active)
    a, b, c = _sources(machine, it, name, 3)
    if name == "f32":
        result = types.fma(a, b, c)
    elif name in ("bf16", "f16"):
        result = np.asarray(a).astype(np.float64) * b + c
    elif name == "f64":
        result = types.fma_double(a, b, c)
    else:
        result = a * b + c
    return finish(machine, it, result, name, active)


def _wide(machine, it, active):
    """mul and mad whose product has twice the bits: all of them, or the high half."""
    name = it.type
    width = types.width_of(name)
    a, b = _sources(machine, it, name, 2)
    if width == 8:
        if not it.has("hi"):
            raise Unsupported(it.text)
        result = _high_of_64(a, b, name)
    else:
        wider = (types.SIGNED if name[0] == "s" else types.UNSIGNED)[2 * width]
        product = np.asarray(a).astype(wider) * np.asarray(b).astype(wider)
        result = product if it.has("wide") else (product >> wider.type(8 * width)).astype(types.DTYPES[name])
    out = f"{name[0]}{8 * width * (2 if it.has('wide') else 1)}"
    if it.opcode == "mad":
        result = result + machine.value(it.operands[3], out)
    return machine.write(it.operands[0], result, out, active)


def _high_of_64(a, b, name: str) -> np.ndarray:
    half = np.uint64(32)
    mask = np.uint64(0xFFFFFFFF)
    x, y = np.asarray(a).astype(np.uint64), np.asarray(b).astype(np.uint64)
    x0, x1, y0, y1 = x & mask, x >> half, y & mask, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    high = x1 * y1 + (middle >> half) + ((x0 * y1 + (middle & mask)) >> half)
    if name[0] == "s":
        high = high - np.where(np.asarray(a) < 0, y, 0).astype(np.uint64)
        high = high - np.where(np.asarray(b) < 0, x, 0).astype(np.uint64)
        return high.view(np.int64)
    return high


@instruction("div", "rem")
def _divide(machine, it, active):
    name = it.type
    a, b = _sources(machine, it, name, 2)
    if types.is_float(name):
        return finish(machine, it, a / b, name, active)
    a, b = np.broadcast_arrays(a, b)
    if name[0] == "u":
        safe = np.where(b == 0, 1, b).astype(b.dtype)
        quotient = np.where(b == 0, ~np.zeros_like(a), a // safe)
    else:  # towards zero
        safe = np.where(b == 0, 1, b).astype(b.dtype)
        floor = a // safe
        inexact = floor * safe != a
        quotient = floor + (inexact & ((a < 0) != (safe < 0))).astype(a.dtype)
    result = quotient if it.opcode == "div" else a - quotient * b
    return machine.write(it.operands[0], result, name, active)


@instruction("min", "max")
def _extreme(machine, it, active):
    name = it.type
    ignoring = np.fmin if it.opcode == "min" else np.fmax
    spreading = np.minimum if it.opcode == "min" else np.maximum
    if name in PACKED:
        return packed(machine, it, active, spreading if it.has("NaN") else ignoring)
    sources = _sources(machine, it, name, len(it.operands) - 1)
    function = ignoring if types.is_float(name) and not it.has("NaN") else spreading
    result = sources[0]
    for source in sources[1:]:
        result = function(result, source)
    return finish(machine, it, result, name, active)


@instruction("and", "or", "xor")
def _logical(machine, it, active):
    a, b = _sources(machine, it, it.type, 2)
    machine.write(it.operands[0], _LOGICAL[it.opcode](a, b), it.type, active)


@instruction("not")
def _not(machine, it, active):
    machine.write(it.operands[0], ~machine.value(it.operands[1], it.type), it.type, active)


@instruction("neg", "abs")
def _sign(machine, it, active):
    function = np.negative if it.opcode == "neg" else np.abs
    if it.type in PACKED:
        return packed(machine, it, active, function)
    return finish(machine, it, function(*_sources(machine, it, it.type, 1)), it.type, active)


@instruction("copysign")
def _copysign(machine, it, active):
    sign, magnitude = _sources(machine, it, it.type, 2)
    machine.write(it.operands[0], np.copysign(magnitude, sign), it.type, active)


def _in_double(function):
    return lambda x: function(np.asarray(x).astype(np.float64)).astype(np.asarray(x).dtype)


_UNARY = {
    "ex2": _in_double(np.exp2),
    "lg2": _in_double(np.log2),
    "sin": _in_double(np.sin),
    "cos": _in_double(np.cos),
    "tanh": _in_double(np.tanh),
    "rcp": _in_double(lambda x: 1.0 / x),
    "sqrt": np.sqrt,
    "rsqrt": _in_double(lambda x: 1.0 / np.sqrt(x)),
}


@instruction(*_UNARY)
def _function(machine, it, active):
    if it.type in PACKED:
        return packed(machine, it, active, _UNARY[it.opcode])
    result = np.asarray(_UNARY[it.opcode](*_sources(machine, it, it.type, 1)))
    if it.opcode == "tanh" and it.type == "f32":
        bits = np.ascontiguousarray(result).view(np.uint32)
        short = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)  # 11 bits
        result = np.where(np.isfinite(result), short, bits).view(np.float32).reshape(result.shape)
    return finish(machine, it, result, it.type, active)


_COMPARE = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "lo": operator.lt,
    "ls": operator.le,
    "hi": operator.gt,
    "hs": operator.ge,
}


def _compare(machine, it):
    a, b = _sources(machine, it, it.type, 2)
    how = it.modifiers[0]
    if not types.is_float(it.type):
        return _COMPARE[how](a, b)
    unordered = np.isnan(a) | np.isnan(b)
    if how in ("num", "nan"):
        return unordered if how == "nan" else ~unordered
    if how in _COMPARE:  # false where one is NaN
        return _COMPARE[how](a, b) & ~unordered
    return _COMPARE[how[:-1]](a, b) | unordered  # equ, neu, ltu, ...


@instruction("setp")
def _set_predicate(machine, it, active):
    result = _compare(machine, it)
    negative = ~result
    if len(it.modifiers) > 1 and it.modifiers[1] in _LOGICAL:
        other = machine.bits(it.operands[3], 0)
        result, negative = (_LOGICAL[it.modifiers[1]](x, other) for x in (result, negative))
    target = it.operands[0]
    if isinstance(target, Pair):
        machine.write(target.second, negative, "pred", active)
        target = target.first
    machine.write(target, result, "pred", active)


@instruction("set")
def _set(machine, it, active):
    out = next(m for m in it.modifiers if m in types.DTYPES)
    true = 1.0 if out == "f32" else 0xFFFFFFFF
    machine.write(it.operands[0], np.where(_compare(machine, it), true, 0).astype(types.DTYPES[out]), out, active)


@instruction("selp")
def _select(machine, it, active):
    name = f"b{8 * types.width_of(it.type)}"
    a, b = (machine.bits(operand, types.width_of(it.type)) for operand in it.operands[1:3])
    if isinstance(it.operands[1], Register) or isinstance(it.operands[2], Register) or types.is_float(it.type):
        a, b = (np.asarray(x) for x in (a, b))
    machine.write(it.operands[0], np.where(machine.bits(it.operands[3], 0), a, b), name, active)
