"""Control flow, barriers, exchange within a warp, and the matrix instructions."""

import numpy as np

from . import types
from .errors import PtxError, Unsupported
from .handlers import instruction
from .machine import WARP
from .movement import Access, parts_of
from .parser import Immediate, Pair


@instruction("bra")
def _branch(machine, it, active):
    machine.branch(it, active)


@instruction("ret", "exit")
def _leave(machine, it, active):
    machine.leave(active)


@instruction("trap")
def _trap(machine, it, active):
    raise PtxError("trap was executed")


@instruction("bar", "barrier")
def _barrier(machine, it, active):
    if it.has("warp"):  # threads of a warp that are here go in lock-step
        return None
    reducing = it.has("red")
    number, *rest = it.operands[1:] if reducing else it.operands
    if not it.has("sync", "red") or number != Immediate(0, None) or len(rest) != reducing:
        raise Unsupported(it.text)
    if not reducing:
        return machine.arrive(active)
    predicate = np.broadcast_to(machine.bits(rest[0], 0), (machine.count,)).copy()

    def vote(threads: np.ndarray) -> None:
        true = np.count_nonzero(predicate[threads])
        if it.has("popc"):
            return machine.write(it.operands[0], np.uint32(true), "u32", threads)
        return machine.write(it.operands[0], true > 0 if it.has("or") else predicate[threads].all(), "pred", threads)

    return machine.arrive(active, vote)


def _whole_warps(machine, it, active) -> None:
    if active is not None:
        warps = active.reshape(-1, WARP)
        if (warps.any(axis=1) != warps.all(axis=1)).any():
            raise PtxError(f"{it.text}: a warp is not complete")


def _from_lanes(machine, it, values, source, active) -> np.ndarray:
    """Each thread's value of the lane `source` of its warp, which must be here too."""
    from_thread = machine.first_lane + source
    if active is not None and not active[from_thread[active]].all():
        raise PtxError(f"{it.text}: {int((~active[from_thread[active]]).sum())} threads read a lane that is not here")
    return np.broadcast_to(values, (machine.count,))[from_thread]


@instruction("shfl")
def _shuffle(machine, it, active):
    how = it.modifiers[1]
    value, b, c = (np.asarray(machine.bits(operand, 4)) for operand in it.operands[1:4])
    b, c = b.astype(np.int64) & 31, c.astype(np.int64)
    segment, clamp = (c >> 8) & 31, c & 31
    lane = machine.lane
    last = (lane & segment) | (clamp & ~segment)
    first = lane & segment
    if how == "up":
        source = lane - b
        inside = source >= last
    elif how == "down":
        source = lane + b
        inside = source <= last
    elif how == "bfly":
        source = lane ^ b
        inside = source <= last
    else:
        source = first | (b & ~segment)
        inside = source <= last
    source = np.where(inside, source, lane)
    target = it.operands[0]
    if isinstance(target, Pair):
        machine.write(target.second, np.broadcast_to(inside, (machine.count,)), "pred", active)
        target = target.first
    machine.write(target, _from_lanes(machine, it, value, source, active), "b32", active)


def _per_warp(machine, values, active) -> np.ndarray:
    """(warps, 32) bool: where a thread is here and its value true."""
    values = np.broadcast_to(values, (machine.count,))
    return (values if active is None else values & active).reshape(-1, WARP)


@instruction("vote")
def _vote(machine, it, active):
    true = machine.bits(it.operands[1], 0)
    if it.has("ballot"):
        weights = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
        votes = (_per_warp(machine, true, active) * weights).sum(axis=1).astype(np.uint32)
        return machine.write(it.operands[0], np.repeat(votes, WARP), "b32", active)
    if it.has("any"):
        result = _per_warp(machine, true, active).any(axis=1)
    elif it.has("all"):
        result = ~_per_warp(machine, ~np.asarray(true), active).any(axis=1)
    else:
        raise Unsupported(it.text)
    return machine.write(it.operands[0], np.repeat(result, WARP), "pred", active)


@instruction("activemask")
def _active_mask(machine, it, active):
    weights = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
    here = (_per_warp(machine, True, active) * weights).sum(axis=1).astype(np.uint32)
    machine.write(it.operands[0], np.repeat(here, WARP), "b32", active)


@instruction("redux")
def _reduce(machine, it, active):
    operation = it.modifiers[1]
    values = np.broadcast_to(machine.value(it.operands[1], it.type), (machine.count,)).reshape(-1, WARP)
    here = _per_warp(machine, True, active)
    limits = np.iinfo(values.dtype)
    neutral = {"add": 0, "or": 0, "xor": 0, "and": -1, "min": limits.max, "max": limits.min}[operation]
    function = {"add": np.add, "or": np.bitwise_or, "xor": np.bitwise_xor, "and": np.bitwise_and}
    function |= {"min": np.minimum, "max": np.maximum}
    start = np.array(neutral).astype(values.dtype)
    result = function[operation].reduce(np.where(here, values, start), axis=1).astype(values.dtype)
    machine.write(it.operands[0], np.repeat(result, WARP), it.type, active)


@instruction("ldmatrix")
def _load_matrices(machine, it, active):
    _whole_warps(machine, it, active)
    count = {"x1": 1, "x2": 2, "x4": 4}[next(m for m in it.modifiers if m in ("x1", "x2", "x4"))]
    giving = machine.lane < 8 * count
    access = Access(machine, it, it.operands[1], 16, giving if active is None else giving & active, "shared")
    access.note(write=False)
    rows = np.zeros(machine.count, np.int64)
    rows[access.threads] = access.offsets // 2
    elements = machine.shared.view(2)
    outer, inner = machine.lane // 4, 2 * (machine.lane % 4)
    for matrix, target in enumerate(parts_of(it.operands[0])):
        word = np.uint32(0)
        for half in (0, 1):
            row, column = (inner + half, outer) if it.has("trans") else (outer, inner + half)
            element = elements[rows[machine.first_lane + 8 * matrix + row] + column]
            word = word | element.astype(np.uint32) << np.uint32(16 * half)
        machine.write(target, word, "b32", active)


def _block_sum(c: np.ndarray, products: np.ndarray) -> np.ndarray:
    """c + the sum over the last axis of products, as tensor cores of sm_80 add; see simulator/ptx.h."""
    terms = np.concatenate([c[..., None].astype(np.float64), products], axis=-1)
    largest = np.abs(terms).max(axis=-1)
    unit = np.frexp(largest)[1] - 24
    scaled = np.ldexp(terms, -unit[..., None])
    finite = np.isfinite(largest)
    total = np.where(finite[..., None], scaled, 0.0).astype(np.int64).sum(axis=-1)
    excess = np.maximum(0, np.frexp(np.abs(total).astype(np.float64))[1] - 24)
    cut = np.ldexp((np.abs(total) >> excess).astype(np.float64), unit + excess)
    special = c + products.sum(axis=-1)
    return np.where(finite, np.where(total < 0, -cut, cut), special).astype(np.float32)


@instruction("mma")
def _matrix_product(machine, it, active):
    _whole_warps(machine, it, active)
    shape = next(m for m in it.modifiers if m.startswith("m16n8"))
    kinds = [m for m in it.modifiers if m in types.DTYPES]
    if not it.has("row") or not it.has("col") or kinds[0] != "f32" or kinds[3] != "f32" or kinds[1] != kinds[2]:
        raise Unsupported(it.text)
    words = [np.stack([machine.bits(e, 4) for e in parts_of(o)], axis=1) for o in it.operands[1:4]]
    a, b = (_matrixelements(word, kinds[1]) for word in words[:2])
    a = a.reshape(-1, 8, 4, a.shape[1], a.shape[2])  # (warps, group, member, register, element)
    b = b.reshape(-1, 8, 4, b.shape[1], b.shape[2])
    warps, _, _, registers, pack = a.shape
    halves = registers // 2  # of k: registers are numbered row half first
    depth = 4 * pack * halves
    if shape != f"m16n8k{depth}":
        raise Unsupported(it.text)
    left = a.reshape(warps, 8, 4, halves, 2, pack).transpose(0, 4, 1, 3, 2, 5).reshape(warps, 16, depth)
    right = b.transpose(0, 3, 2, 4, 1).reshape(warps, depth, 8)
    sums = words[2].view(np.float32).reshape(warps, 8, 4, 2, 2).transpose(0, 3, 1, 2, 4).reshape(warps, 16, 8)
    group = 4 * pack  # terms that a device adds at once
    products = left[:, :, None, :] * right.transpose(0, 2, 1)[:, None, :, :]  # (warps, 16, 8, depth)
    for start in range(0, depth, group):
        sums = _block_sum(sums, products[..., start : start + group])
    result = sums.reshape(warps, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(machine.count, 4)
    for i, target in enumerate(parts_of(it.operands[0])):
        machine.write(target, np.ascontiguousarray(result[:, i]), "f32", active)


def _matrixelements(words: np.ndarray, kind: str) -> np.ndarray:
    """(threads, registers) -> (threads, registers, elements of a register) float64."""
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)[..., None]
    parts = np.stack([words.astype(np.uint16), (words >> np.uint32(16)).astype(np.uint16)], axis=-1)
    if kind == "bf16":
        return types.from_bf16(parts).astype(np.float64)
    if kind == "f16":
        return parts.view(np.float16).astype(np.float64)
    raise Unsupported(f"matrix products of {kind}")
