"""Moves, loads, stores, asynchronous copies and atomics."""

import numpy as np

from . import types
from .errors import PtxError, Unsupported
from .handlers import instruction
from .memory import LOCAL_BASE, SHARED_BASE
from .parser import Register, Vector

_SPACES = ("param", "global", "shared", "local", "const")
_WINDOWS = {"shared": SHARED_BASE, "local": LOCAL_BASE, "global": 0, "const": 0, "param": 0}


def space_of(it) -> str:
    """The memory that an instruction names; "generic" for none."""
    for modifier in it.modifiers:
        name = modifier.partition(":")[0]
        if name in _SPACES:
            return name
    return "generic"


@instruction("mov")
def _move(machine, it, active):
    to, source = it.operands
    width = types.width_of(it.type)
    if isinstance(to, Vector):
        word = np.asarray(machine.bits(source, width))
        part = 8 * width // len(to.elements)
        for i, element in enumerate(to.elements):
            piece = (word >> word.dtype.type(i * part)).astype(types.UNSIGNED[part // 8])
            machine.write(element, piece, f"b{part}", active)
    elif isinstance(source, Vector):
        part = width // len(source.elements)
        word = types.UNSIGNED[width].type(0)
        for i, element in enumerate(source.elements):
            piece = np.asarray(machine.bits(element, part)).astype(types.UNSIGNED[width])
            word = word | piece << types.UNSIGNED[width].type(8 * part * i)
        machine.write(to, word, f"b{8 * width}", active)
    else:
        bits = machine.bits(source, width)
        machine.write(to, bits, f"b{8 * width}" if width else "pred", active)


@instruction("cvta")
def _to_address(machine, it, active):
    window = np.uint64(_WINDOWS[space_of(it)])
    address = np.asarray(machine.bits(it.operands[1], 8))
    machine.write(it.operands[0], address - window if it.has("to") else address + window, "b64", active)


def _addresses(machine, operand) -> np.ndarray:
    """(threads) uint64."""
    base = operand.base
    width = 8
    if isinstance(base, Register) and base.name in machine.kernel.registers:
        width = types.width_of(machine.kernel.registers[base.name])
    address = np.asarray(machine.bits(base, width)).astype(np.uint64)
    return np.broadcast_to(address + np.uint64(operand.offset & 0xFFFF_FFFF_FFFF_FFFF), (machine.count,))


class Access:
    """A checked access by the active threads: where it lies in which bytes."""

    def __init__(self, machine, it, operand, width: int, active, space: str | None = None):
        addresses = _addresses(machine, operand)
        self.threads = np.arange(machine.count) if active is None else np.flatnonzero(active)
        addresses = addresses[self.threads]
        space = space or space_of(it)
        if space == "generic":
            space = machine.generic_space(addresses, it.text)
            addresses = addresses - np.uint64(_WINDOWS[space])
        self.space, self.machine, self.it, self.width = space, machine, it, width
        if space == "shared":
            blocks = machine.block[self.threads]
            self.offsets = machine.shared.offsets(addresses, blocks, width, it.text)
            self.memory = machine.shared
        elif space in ("global", "const"):
            self.offsets = machine.device.offsets(addresses, width, it.text)
            self.memory = machine.device
        elif space == "local":
            self.offsets = addresses.astype(np.int64)
            outside = (self.offsets < 0) | (self.offsets + width > machine.local.shape[1])
            if outside.any():
                raise PtxError(f"{it.text}: {int(outside.sum())} threads are outside of local memory")
            self.offsets = self.offsets + self.threads * machine.local.shape[1]
            self.memory = None
        else:
            raise Unsupported(it.text)

    def view(self, width: int) -> np.ndarray:
        if self.memory is None:
            return self.machine.local.reshape(-1).view(types.UNSIGNED[width])
        return self.memory.view(width)

    def note(self, write: bool) -> None:
        """Look for races, and count what the memory has to do."""
        warps = self.machine.warp[self.threads]
        if self.space == "shared":
            epochs = self.machine.epochs()[self.threads]
            record = self.memory.note_write if write else self.memory.note_read
            record(self.offsets, self.width, warps.astype(np.int32), epochs, self.it.text)
            self.machine.traffic.shared(warps, self.machine.lane[self.threads], self.offsets, self.width)
        elif self.space == "global":
            self.machine.traffic.of_global(warps, self.offsets, self.width)

    def full(self, values: np.ndarray) -> np.ndarray:
        """Values of the active threads -> of all threads."""
        if len(self.threads) == self.machine.count:
            return values
        whole = np.zeros(self.machine.count, values.dtype)
        whole[self.threads] = values
        return whole


def parts_of(operand) -> tuple:
    return operand.elements if isinstance(operand, Vector) else (operand,)


@instruction("ld", "ldu")
def _load(machine, it, active):
    targets, width = parts_of(it.operands[0]), types.width_of(it.type)
    if it.has("async"):
        raise Unsupported(it.text)
    if space_of(it) == "param":
        parameters = np.frombuffer(machine.parameters, np.uint8)
        starts = _addresses(machine, it.operands[1]).astype(np.int64)
        for i, target in enumerate(targets):
            piece = parameters[_spread(starts + i * width, width)].view(types.UNSIGNED[width])[:, 0]
            machine.write(target, piece.view(types.DTYPES[it.type]), it.type, active)
        return
    access = Access(machine, it, it.operands[1], width * len(targets), active)
    access.note(write=False)
    view = access.view(width)
    for i, target in enumerate(targets):
        values = view[access.offsets // width + i]
        values = values if it.type == "bf16" else values.view(types.DTYPES[it.type])
        machine.write(target, access.full(values), it.type, active)


@instruction("st")
def _store(machine, it, active):
    if it.has("async", "bulk"):
        raise Unsupported(it.text)
    sources, width = parts_of(it.operands[1]), types.width_of(it.type)
    access = Access(machine, it, it.operands[0], width * len(sources), active)
    access.note(write=True)
    view = access.view(width)
    for i, source in enumerate(sources):
        values = np.broadcast_to(machine.bits(source, width), (machine.count,))
        view[access.offsets // width + i] = values[access.threads]


# cp.async.


@instruction("cp")
def _copy(machine, it, active):
    if it.modifiers[0] != "async" or it.has("bulk", "mbarrier"):
        raise Unsupported(it.text)
    threads = np.arange(machine.count) if active is None else np.flatnonzero(active)
    if it.has("commit_group"):
        machine.copy_group[threads] += 1
    elif it.has("wait_group", "wait_all"):
        newest = 0 if it.has("wait_all") else it.operands[0].value
        machine.copy_group[threads] += it.has("wait_all")
        _land(machine, it, threads, newest)
    else:
        _issue(machine, it, active, threads)


def _issue(machine, it, active, threads) -> None:
    """The target becomes NaN at once: who reads it before the wait, or still reads what was there, gets that."""
    width = it.operands[2].value
    to = Access(machine, it, it.operands[0], width, active, "shared")
    to.note(write=True)
    to.view(1)[_spread(to.offsets, width)] = 0xFF
    taken = np.full(machine.count, width)
    if len(it.operands) > 3:
        taken = np.broadcast_to(machine.bits(it.operands[3], 4), (machine.count,)).astype(np.int64)
        if not np.isin(taken[threads], (0, width)).all():
            raise Unsupported(f"{it.text}: a part of the bytes")
    reading = np.zeros(machine.count, bool)
    reading[threads] = taken[threads] > 0
    source = np.zeros((machine.count, width), np.uint8)
    if reading.any():
        access = Access(machine, it, it.operands[1], width, reading, "global")
        access.note(write=False)
        source[access.threads] = access.view(1)[_spread(access.offsets, width)]
    machine.copies.append((threads, machine.copy_group[threads].copy(), to.offsets, source[threads], it))


def _spread(offsets, width) -> np.ndarray:
    return offsets[:, None] + np.arange(width)


def _land(machine, it, threads, newest: int) -> None:
    """Complete all but the `newest` groups of these threads."""
    limit = np.full(machine.count, -1)
    limit[threads] = machine.copy_group[threads] - newest
    left = []
    for copying, group, offsets, source, issued in machine.copies:
        done = group < limit[copying]
        if done.any():
            at = _spread(offsets[done], source.shape[1])
            warps = machine.warp[copying[done]].astype(np.int32)
            epochs = machine.epochs()[copying[done]]
            machine.shared.note_write(offsets[done], source.shape[1], warps, epochs, issued.text)
            machine.shared.view(1)[at] = source[done]
        if not done.all():
            rest = ~done
            left.append((copying[rest], group[rest], offsets[rest], source[rest], issued))
    machine.copies = left


# Atomics.


def _update(name: str, operation: str):
    def compare(old, value, third):
        return third if old == value else old

    table = {
        "add": lambda old, value, _: old + value,
        "min": lambda old, value, _: min(old, value),
        "max": lambda old, value, _: max(old, value),
        "and": lambda old, value, _: old & value,
        "or": lambda old, value, _: old | value,
        "xor": lambda old, value, _: old ^ value,
        "exch": lambda old, value, _: value,
        "cas": compare,
    }
    if operation not in table or name in ("bf16x2", "f16x2", "bf16", "f16"):
        raise Unsupported(f"atomic {operation} of {name}")
    return table[operation]


@instruction("atom", "red")
def _atomic(machine, it, active):
    name, width = it.type, types.width_of(it.type)
    place, *values = it.operands if it.opcode == "red" else it.operands[1:]
    operation = next(m for m in it.modifiers if m in ("add", "min", "max", "and", "or", "xor", "exch", "cas"))
    function = _update(name, operation)
    access = Access(machine, it, place, width, active)
    view = access.view(width).view(types.DTYPES[name])
    sources = [np.broadcast_to(machine.value(value, name), (machine.count,)) for value in values]
    before = np.zeros(machine.count, types.DTYPES[name])
    for thread, offset in zip(access.threads, access.offsets // width, strict=True):
        before[thread] = view[offset]
        arguments = [source[thread] for source in sources] + [None] * (2 - len(sources))
        view[offset] = function(view[offset], *arguments)
    if it.opcode == "atom":
        machine.write(it.operands[0], before, name, active)


@instruction("membar", "fence", "prefetch", "prefetchu")
def _nothing(machine, it, active):
    """Memory is consistent here, and has no cache."""
