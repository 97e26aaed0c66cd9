"""Shifts, bit fields, bytes and counts."""

import numpy as np

from . import types
from .errors import Unsupported
from .handlers import instruction


@instruction("shl", "shr")
def _shift(machine, it, active):
    name = it.type
    bits = 8 * types.width_of(name)
    value = np.asarray(machine.value(it.operands[1], name))
    distance = np.asarray(machine.bits(it.operands[2], 4)).astype(np.uint32)
    inside = np.minimum(distance, bits - 1).astype(value.dtype)
    if it.opcode == "shl":
        result = np.where(distance >= bits, value.dtype.type(0), value << inside)
    else:
        result = value >> inside
        result = np.where(distance >= bits, result >> value.dtype.type(bits - 1), result) if name[0] == "s" else result
        result = np.where(distance >= bits, value.dtype.type(0), result) if name[0] != "s" else result
    machine.write(it.operands[0], result, name, active)


@instruction("shf")
def _funnel_shift(machine, it, active):
    low, high, distance = (np.asarray(machine.bits(operand, 4)).astype(np.uint64) for operand in it.operands[1:4])
    distance = distance & np.uint64(31) if it.has("wrap") else np.minimum(distance, np.uint64(32))
    both = high << np.uint64(32) | low
    result = both >> (np.uint64(32) - distance) if it.has("l") else both >> distance
    machine.write(it.operands[0], result.astype(np.uint32), "b32", active)


@instruction("bfe")
def _extract(machine, it, active):
    name = it.type
    bits = 8 * types.width_of(name)
    value = np.asarray(machine.bits(it.operands[1], bits // 8)).astype(np.uint64)
    start, length = (np.asarray(machine.bits(o, 4)).astype(np.uint64) & np.uint64(0xFF) for o in it.operands[2:4])
    one = np.uint64(1)
    top = np.where(length >= 64, ~np.uint64(0), (one << np.minimum(length, 63)) - one)
    result = np.where(start < bits, value >> np.minimum(start, 63), 0).astype(np.uint64) & top
    if name[0] == "s":
        last = np.minimum(start + length - np.where(length > 0, one, 0).astype(np.uint64), np.uint64(bits - 1))
        negative = (length > 0) & ((value >> last) & one == one)
        kept = np.minimum(length, np.uint64(bits) - np.minimum(start, np.uint64(bits)))
        fill = np.where(kept >= 64, np.uint64(0), ~((one << np.minimum(kept, 63)) - one))
        result = np.where(negative, result | fill, result)
    machine.write(it.operands[0], result.astype(types.UNSIGNED[bits // 8]), f"b{bits}", active)


@instruction("bfi")
def _insert(machine, it, active):
    width = types.width_of(it.type)
    kind = types.UNSIGNED[8]
    value, into = (np.asarray(machine.bits(o, width)).astype(kind) for o in it.operands[1:3])
    start, length = (np.asarray(machine.bits(o, 4)).astype(kind) & kind.type(0xFF) for o in it.operands[3:5])
    one = kind.type(1)
    field = np.where(length >= 64, ~kind.type(0), (one << np.minimum(length, 63)) - one)
    mask = np.where(start < 64, field << np.minimum(start, 63), 0).astype(kind)
    result = (into & ~mask) | ((value << np.minimum(start, 63)) & mask)
    machine.write(it.operands[0], result.astype(types.UNSIGNED[width]), f"b{8 * width}", active)


@instruction("prmt")
def _permute(machine, it, active):
    if len(it.modifiers) > 1:
        raise Unsupported(it.text)
    low, high, selector = (np.asarray(machine.bits(o, 4)).astype(np.uint64) for o in it.operands[1:4])
    both = high << np.uint64(32) | low
    result = np.uint64(0)
    for i in range(4):
        nibble = selector >> np.uint64(4 * i)
        byte = (both >> (np.uint64(8) * (nibble & np.uint64(7)))) & np.uint64(0xFF)
        sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
        result = result | np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * i)
    machine.write(it.operands[0], result.astype(np.uint32), "b32", active)


@instruction("lop3")
def _lookup(machine, it, active):
    a, b, c = (np.asarray(machine.bits(operand, 4)) for operand in it.operands[1:4])
    table = it.operands[4].value
    result = np.uint32(0)
    for i in range(8):
        if table >> i & 1:
            result = result | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    machine.write(it.operands[0], result, "b32", active)


@instruction("bfind")
def _find(machine, it, active):
    """The highest set bit (of ~a where a is negative), or how far it is from the top; all ones where there is none."""
    bits = 8 * types.width_of(it.type)
    value = np.asarray(machine.value(it.operands[1], it.type))
    if it.type[0] == "s":
        value = np.where(value < 0, ~value, value)
    places = np.full(value.shape, -1, np.int64)
    for place in range(bits):
        places = np.where(value >> value.dtype.type(place) & value.dtype.type(1) != 0, place, places)
    if it.has("shiftamt"):
        places = np.where(places < 0, places, bits - 1 - places)
    machine.write(it.operands[0], places.astype(np.uint32), "u32", active)


@instruction("popc", "clz", "brev")
def _count_bits(machine, it, active):
    width = types.width_of(it.type)
    value = np.asarray(machine.bits(it.operands[1], width))
    digits = np.unpackbits(np.ascontiguousarray(value).reshape(-1, 1).view(np.uint8), axis=1, bitorder="little")
    if it.opcode == "popc":
        result, name = digits.sum(axis=1).astype(np.uint32), "u32"
    elif it.opcode == "clz":
        leading = np.where(digits.any(axis=1), np.argmax(digits[:, ::-1], axis=1), 8 * width)
        result, name = leading.astype(np.uint32), "u32"
    else:
        flipped = np.packbits(digits[:, ::-1], axis=1, bitorder="little")
        result, name = np.ascontiguousarray(flipped).view(types.UNSIGNED[width]).reshape(-1), f"b{8 * width}"
    machine.write(it.operands[0], result.reshape(value.shape), name, active)
