"""Two 16-bit floating-point numbers in one register."""

import numpy as np

from . import types

PACKED = ("bf16x2", "f16x2")


def _halves(machine, operand, type_name: str) -> list[np.ndarray]:
    """Both numbers of a packed operand, as float32."""
    word = machine.bits(operand, 4)
    parts = [word.astype(np.uint16), (word >> np.uint32(16)).astype(np.uint16)]
    if type_name == "bf16x2":
        return [types.from_bf16(part) for part in parts]
    return [part.view(np.float16).astype(np.float32) for part in parts]


def pack(low, high, type_name: str) -> np.ndarray:
    def bits(values):
        if type_name == "bf16x2":
            return types.to_bf16(values)
        return np.ascontiguousarray(np.asarray(values).astype(np.float16)).view(np.uint16)

    return bits(low).astype(np.uint32) | bits(high).astype(np.uint32) << np.uint32(16)


def packed(machine, it, active, function) -> None:
    """Apply a function to the low and to the high halves of the sources."""
    sources = [_halves(machine, operand, it.type) for operand in it.operands[1:]]
    low, high = (function(*(source[i] for source in sources)) for i in (0, 1))
    if it.has("relu"):
        low, high = np.maximum(low, 0), np.maximum(high, 0)
    machine.write(it.operands[0], pack(low, high, it.type), "b32", active)
