"""Runs kernels of a PTX module with numpy arrays as device memory.

module = Module(text)
profile = module.launch("layer_norm", grid=3, block=128, arguments=[x, y, rows, 1e-5])
profile["mma"]  # how many a warp executed
profile.traffic.extra_passes  # conflicts of banks
"""

import struct
from collections import Counter
from dataclasses import dataclass

import numpy as np

from .. import executed
from . import arithmetic, bits, conversions, movement, types, warps
from .errors import PtxError
from .handlers import HANDLERS
from .machine import WARP, Machine
from .memory import Device
from .parser import Kernel, parse
from .traffic import Traffic

_BATCH = 4096  # threads that run together
_REGISTERED = (arithmetic, bits, conversions, movement, warps)  # imported for their handlers


class Struct:
    """A parameter that is a structure: a format of the module `struct`, and its fields. Arrays become pointers."""

    def __init__(self, layout: str, *fields):
        self.layout, self.fields = layout, fields


@dataclass(frozen=True)
class Profile:
    """What a launch executed: instructions by their full names, counted once for each warp, and what memory did."""

    warps: int
    executed: Counter
    traffic: Traffic

    def __getitem__(self, opcode: str) -> float:
        """Instructions that begin with these words ("mma", "ld.global"), for each warp."""
        words = opcode.split(".")
        counts = (n for name, n in self.executed.items() if name.split(".")[: len(words)] == words)
        return sum(counts) / self.warps

    def total(self) -> float:
        """Instructions for each warp."""
        return self.executed.total() / self.warps


class Module:
    """A PTX module.

    Args:
        text: what nvcc -ptx or Triton's asm["ptx"] gives.
    """

    def __init__(self, text: str):
        self.kernels = parse(text)

    def find(self, part: str) -> Kernel:
        """The one kernel whose name holds `part`.

        Raises:
            PtxError: none or several.
        """
        found = [name for name in self.kernels if part in name]
        if len(found) != 1:
            raise PtxError(f"kernel must be a part of one name, got {part!r} for {list(self.kernels)}")
        return self.kernels[found[0]]

    def launch(self, kernel: str, *, grid, block, arguments, shared_bytes: int = 0, max_steps: int = 20_000_000):
        """Run a kernel; arrays are copied to the device and back into the same arrays.

        Args:
            kernel: its name, or a part of it.
            grid, block: an integer or up to three.
            arguments: arrays, numbers, bytes and `Struct`s. Trailing pointers that Triton adds may be left out.
            shared_bytes: dynamic shared memory.
            max_steps: instructions after which a batch of blocks counts as one that never ends.

        Returns:
            A `Profile`.

        Raises:
            PtxError: the kernel did what a device forbids, or wrote to a read-only array.
            Unsupported: an instruction that the interpreter does not know.
        """
        found = self.find(kernel)
        grid, block = (((n,) if isinstance(n, int) else tuple(n)) + (1, 1, 1) for n in (grid, block))
        grid, block = grid[:3], block[:3]
        device, places = Device(), []
        symbols = _place_variables(found, device)
        parameters = _parameters(found, arguments, device, places)
        symbols |= {parameter.name: parameter.offset for parameter in found.parameters}
        threads = -(-block[0] * block[1] * block[2] // WARP) * WARP
        blocks, batch = grid[0] * grid[1] * grid[2], max(1, _BATCH // threads)
        counts, traffic = Counter(), Traffic()
        for start in range(0, blocks, batch):
            numbers = range(start, min(start + batch, blocks))
            machine = Machine(found, device, grid, block, numbers, parameters, shared_bytes, symbols)
            machine.run(HANDLERS, max_steps)
            traffic.add(machine.traffic)
            for number, executions in machine.executed.items():
                counts[found.instructions[number].mnemonic] += executions
        executed.record(executed.INTERPRETER, kernel)
        for array, address in places:
            _copy_back(kernel, array, device.get(address, array))
        return Profile(blocks * threads // WARP, counts, traffic)


def _place_variables(kernel: Kernel, device: Device) -> dict[str, int]:
    """Addresses of the module's variables in global and constant memory."""
    addresses = {}
    for variable in kernel.variables.values():
        if variable.space in ("global", "const") and variable.size:
            kind = types.DTYPES[variable.type]
            array = np.zeros(variable.size // kind.itemsize, kind)
            array[: len(variable.values)] = [int(value.rstrip("U"), 0) for value in variable.values]
            addresses[variable.name] = device.put(array)
    return addresses


def _parameters(kernel: Kernel, arguments, device: Device, places: list) -> bytes:
    data = bytearray(kernel.parameter_bytes)
    hidden = len(kernel.parameters) - len(arguments)
    if not 0 <= hidden <= 2:
        raise PtxError(f"{kernel.name} has {len(kernel.parameters)} parameters, got {len(arguments)} arguments")

    def address(value):
        if not isinstance(value, np.ndarray):
            return value
        for placed, where in places:
            if placed is value:  # the same memory in two structures
                return where
        places.append((value, device.put(value)))
        return places[-1][1]

    for parameter, argument in zip(kernel.parameters, arguments, strict=False):
        if isinstance(argument, Struct):
            packed = struct.pack(argument.layout, *(address(field) for field in argument.fields))
        elif isinstance(argument, bytes):
            packed = argument
        else:
            kind = types.DTYPES[parameter.type]
            packed = np.array(address(argument)).astype(kind).tobytes()
        if len(packed) != parameter.size:
            raise PtxError(f"{parameter.name} has {parameter.size} bytes, got {len(packed)}")
        data[parameter.offset : parameter.offset + parameter.size] = packed
    return bytes(data)


def _copy_back(kernel: str, array: np.ndarray, found: np.ndarray) -> None:
    if array.flags.writeable:
        array[...] = found
    elif found.tobytes() != array.tobytes():
        raise PtxError(f"{kernel}: an input of shape {array.shape} was written to")
