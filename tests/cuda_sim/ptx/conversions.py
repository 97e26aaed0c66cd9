"""cvt: between the types."""

import numpy as np

from . import types
from .arithmetic import finish
from .errors import Unsupported
from .handlers import instruction
from .packed import PACKED, pack

_ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@instruction("cvt")
def _convert(machine, it, active):
    to, source = [m for m in it.modifiers if m in types.DTYPES][-2:]
    if to in PACKED:
        high, low = (machine.value(operand, source) for operand in it.operands[1:3])
        if it.has("relu"):
            high, low = np.maximum(high, 0), np.maximum(low, 0)
        return machine.write(it.operands[0], pack(low, high, to), "b32", active)
    values = np.asarray(machine.value(it.operands[1], source))
    if to == "tf32":
        if not it.has("rna"):
            raise Unsupported(it.text)
        return machine.write(it.operands[0], types.round_tf32(values), "b32", active)
    if it.has("ftz") and source == "f32":
        values = types.flush(values)
    for name, function in _ROUNDINGS.items():
        if it.has(name):
            values = function(values)
    if types.is_float(to):
        if it.has("rz", "rm", "rp"):
            raise Unsupported(it.text)
        if to != "bf16":
            values = values.astype(types.DTYPES[to])
        elif not types.is_float(source):
            values = values.astype(np.float64)
        return finish(machine, it, values, to, active)
    if types.is_float(source) or it.has("sat"):
        values = _clamp(values, to, types.is_float(source))
    return machine.write(it.operands[0], values.astype(types.DTYPES[to]), to, active)


def _clamp(values, to: str, floating: bool):
    """Into the range of an integer type; NaN becomes 0."""
    limits = np.iinfo(types.DTYPES[to])
    if not floating:
        return np.clip(values.astype(object), limits.min, limits.max)
    values = values.astype(np.float64)
    result = np.where(np.isnan(values), 0, np.clip(values, limits.min, limits.max))
    over = result >= float(limits.max)  # 2^63 and 2^64 are no integers of the type
    safe = np.where(over, 0, result).astype(types.DTYPES[to])
    return np.where(over, types.DTYPES[to].type(limits.max), safe)
