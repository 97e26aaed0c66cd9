"""Calls kernels that were compiled for the simulator, with numpy arrays as device memory.

    module = Simulation(building.simulator_module([source]))
    module.call("launch_layer_norm", x, y, rows)

Entries are `extern "C"` functions that return a cudaError_t. Arrays become pointers, integers int64_t, floats double.
"""

import contextlib
import ctypes
from pathlib import Path

import numpy as np

from . import executed

ORDERS = ("forward", "reverse", "random")


class SimulationError(Exception):
    """A kernel did what a device forbids, or a launch was refused; the message says which thread did what."""


class Simulation:
    """A simulated module.

    Args:
        library: a shared object of `building.simulator_module`.
    """

    def __init__(self, library: Path):
        self._library = ctypes.CDLL(str(library))
        self._library.rohydr_sim_allocate.restype = ctypes.c_void_p
        self._library.rohydr_sim_allocate.argtypes = [ctypes.c_size_t]
        self._library.rohydr_sim_error.restype = ctypes.c_char_p
        self._library.rohydr_sim_launched.restype = ctypes.c_char_p
        self._library.rohydr_sim_schedule.argtypes = [ctypes.c_int, ctypes.c_uint64]

    @contextlib.contextmanager
    def order(self, name: str, seed: int = 1):
        """Threads and blocks run in this order: forward, reverse or random."""
        self._library.rohydr_sim_schedule(ORDERS.index(name), seed)
        try:
            yield
        finally:
            self._library.rohydr_sim_schedule(0, 0)

    def call(self, entry: str, *arguments) -> None:
        """Copy the arrays to the device, call the entry, and copy them back into the same arrays.

        A read-only array must come back unchanged (`numbers.read_only`).

        Raises:
            SimulationError: a kernel failed, a launch was refused, or an input was written to.
        """
        function = getattr(self._library, entry)
        function.restype = ctypes.c_int
        places, values = [], []
        try:
            for argument in arguments:
                if isinstance(argument, np.ndarray):
                    places.append((argument, self._to_device(argument)))
                    values.append(ctypes.c_void_p(places[-1][1]))
                else:
                    scalar = ctypes.c_double if isinstance(argument, float) else ctypes.c_int64
                    values.append(scalar(argument))
            self._library.rohydr_sim_clear_report()
            error = function(*values)
            for kernel in self._library.rohydr_sim_launched().decode().split("\n")[:-1]:
                executed.record(executed.SIMULATOR, kernel.strip("()"))
            if error != 0:
                text = self._library.rohydr_sim_error().decode()
                raise SimulationError(text or f"{entry}: the launch was refused with cudaError {error}")
            for array, place in places:
                self._from_device(entry, array, place)
        finally:
            self._library.rohydr_sim_release_all()

    def value(self, entry: str, *arguments: int) -> int:
        """What a host function of int64_t gives."""
        function = getattr(self._library, entry)
        function.restype = ctypes.c_int64
        return function(*map(ctypes.c_int64, arguments))

    def _to_device(self, array: np.ndarray) -> int:
        if not array.flags.c_contiguous:
            raise ValueError(f"arrays must be contiguous, got strides {array.strides} of shape {array.shape}.")
        place = self._library.rohydr_sim_allocate(array.nbytes)
        ctypes.memmove(place, array.ctypes.data, array.nbytes)
        return place

    @staticmethod
    def _from_device(entry: str, array: np.ndarray, place: int) -> None:
        found = ctypes.string_at(place, array.nbytes)
        if array.flags.writeable:
            ctypes.memmove(array.ctypes.data, found, array.nbytes)
        elif found != array.tobytes():
            raise SimulationError(f"{entry}: an input of shape {array.shape} was written to")
