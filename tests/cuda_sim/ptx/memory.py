"""Memory with checks: global memory has a table of allocations, shared memory remembers who touched each byte.

Both start as 0xFF, which is NaN in every floating-point type.
"""

import numpy as np

from .errors import PtxError
from .types import UNSIGNED

GLOBAL_BASE = 0x7F00_0000_0000
SHARED_BASE = 0x0100_0000_0000  # the windows of generic addresses
LOCAL_BASE = 0x0200_0000_0000
_GUARD = 256
_POISON = 0xFF


class Device:
    """Global memory. Addresses are multiples of 256, with at least 256 bytes between allocations."""

    def __init__(self):
        self._bytes = np.full(1 << 16, _POISON, np.uint8)
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._top = _GUARD

    def put(self, array: np.ndarray) -> int:
        """Allocate a copy of an array; returns its address."""
        array = np.ascontiguousarray(array)
        start, end = self._top, self._top + array.nbytes
        self._top = -(-(end + _GUARD) // _GUARD) * _GUARD
        if self._top > self._bytes.size:
            grown = np.full(2 * self._top, _POISON, np.uint8)
            grown[: self._bytes.size] = self._bytes
            self._bytes = grown
        self._bytes[start:end] = array.reshape(-1).view(np.uint8)
        self._starts.append(start)
        self._ends.append(end)
        return GLOBAL_BASE + start

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        """What lies at an address, with the shape and the type of `like`."""
        start = address - GLOBAL_BASE
        return self._bytes[start : start + like.nbytes].view(like.dtype).reshape(like.shape).copy()

    def offsets(self, addresses: np.ndarray, width: int, text: str) -> np.ndarray:
        """Where in the bytes a checked access of `width` bytes lies.

        Raises:
            PtxError: outside of every allocation, or not aligned to its width.
        """
        offsets = addresses.astype(np.int64) - GLOBAL_BASE
        starts, ends = np.array(self._starts), np.array(self._ends)
        owner = np.searchsorted(starts, offsets, side="right") - 1
        outside = (owner < 0) | (offsets + width > ends[np.maximum(owner, 0)])
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            nearest = max(int(owner[first]), 0)
            place = int(offsets[first]) - int(starts[nearest])
            raise PtxError(
                f"{text}: {int(outside.sum())} threads are out of bounds, the first at byte {place} of allocation "
                f"{nearest}, which has {int(ends[nearest] - starts[nearest])}"
            )
        if (offsets % width).any():
            raise PtxError(f"{text}: {int((offsets % width != 0).sum())} threads are not aligned to {width} bytes")
        return offsets

    def view(self, width: int) -> np.ndarray:
        """All bytes as unsigned integers of a width."""
        return self._bytes[: self._bytes.size // 16 * 16].view(UNSIGNED[width])


class BlockMemory:
    """Shared memory of all blocks of a batch, one row each. Offsets count from the start of a row.

    A race is two accesses to one byte by different warps of a block, one of them a store, with no barrier of the block
    between them. Within a warp, threads run in lock-step here, and nothing is checked.
    """

    NOBODY, SEVERAL = -1, -2

    def __init__(self, blocks: int, size: int):
        self.size = size
        self._pitch = -(-size // 16) * 16 + 16
        self._bytes = np.full(blocks * self._pitch, _POISON, np.uint8)
        self._writer = np.full(self._bytes.size, self.NOBODY, np.int32)
        self._reader = np.full(self._bytes.size, self.NOBODY, np.int32)
        self._written_in = np.zeros(self._bytes.size, np.int32)
        self._read_in = np.zeros(self._bytes.size, np.int32)

    def offsets(self, addresses: np.ndarray, blocks: np.ndarray, width: int, text: str) -> np.ndarray:
        """Where in the bytes a checked access of `width` bytes lies.

        Raises:
            PtxError: outside of the block's memory, or not aligned to its width.
        """
        addresses = addresses.astype(np.int64)
        outside = (addresses < 0) | (addresses + width > self.size)
        if outside.any():
            worst = int(addresses[outside][0])
            raise PtxError(
                f"{text}: {int(outside.sum())} threads are outside of shared memory, the first at byte {worst} of "
                f"{self.size}"
            )
        if (addresses % width).any():
            raise PtxError(f"{text}: {int((addresses % width != 0).sum())} threads are not aligned to {width} bytes")
        return addresses + blocks * self._pitch

    def view(self, width: int) -> np.ndarray:
        return self._bytes.view(UNSIGNED[width])

    def note_read(self, offsets: np.ndarray, width: int, warps: np.ndarray, epochs: np.ndarray, text: str) -> None:
        """Record loads; `epochs` counts the barriers that each thread's block has passed, from 1.

        Raises:
            PtxError: a race with a store.
        """
        at, warp, epoch = self._spread(offsets, width, warps, epochs)
        self._refuse((self._written_in[at] == epoch) & (self._writer[at] != warp), text, "stored to")
        alone = (self._read_in[at] != epoch) | (self._reader[at] == warp)
        self._reader[at] = np.where(alone, warp, self.SEVERAL)
        self._reader[at[self._reader[at] != warp]] = self.SEVERAL  # several warps in this very instruction
        self._read_in[at] = epoch

    def note_write(self, offsets: np.ndarray, width: int, warps: np.ndarray, epochs: np.ndarray, text: str) -> None:
        """Record stores.

        Raises:
            PtxError: a race with a load or a store.
        """
        at, warp, epoch = self._spread(offsets, width, warps, epochs)
        self._refuse((self._written_in[at] == epoch) & (self._writer[at] != warp), text, "stored to")
        self._refuse((self._read_in[at] == epoch) & (self._reader[at] != warp), text, "loaded from")
        self._writer[at] = warp
        self._refuse(self._writer[at] != warp, text, "stored to")
        self._written_in[at] = epoch

    @staticmethod
    def _spread(offsets, width, warps, epochs):
        """The bytes of each access, its warp and its epoch."""
        at = (offsets[:, None] + np.arange(width)).reshape(-1)
        return at, np.repeat(warps, width), np.repeat(epochs, width)

    def _refuse(self, race: np.ndarray, text: str, what: str) -> None:
        if race.any():
            raise PtxError(
                f"{text}: a race, since another warp {what} the same {int(race.sum())} bytes of shared memory with no "
                "barrier between"
            )
