"""How many passes memory needs for the accesses of a warp, as a device of sm_80 or sm_90 makes them.

Shared memory has 32 banks of 4 bytes: a pass serves lanes that ask for 128 bytes (all 32 with 4 bytes
each, 16 with 8, 8 with 16), again for each further word of one bank. Global memory moves sectors of 32 bytes.
"""

from dataclasses import dataclass

import numpy as np

_BANKS, _WORD, _PASS, _SECTOR = 32, 4, 128, 32


@dataclass
class Traffic:
    """Sums over a launch.

    Attributes:
        passes: passes of shared memory.
        extra_passes: those that conflicts of banks add.
        sectors: sectors of global memory, counted for each instruction of a warp.
        bytes: bytes of global memory that were asked for.
    """

    passes: int = 0
    extra_passes: int = 0
    sectors: int = 0
    bytes: int = 0

    def shared(self, warps: np.ndarray, lanes: np.ndarray, offsets: np.ndarray, width: int) -> None:
        """Count one instruction: the warp, lane and byte offset of each active thread, `width` bytes each."""
        together = max(1, min(32, _PASS // max(width, _WORD)))  # lanes of a pass
        turn = warps * 32 + lanes // together
        count = max(1, width // _WORD)
        words = (offsets // _WORD)[:, None] + np.arange(count)
        pairs = np.unique(np.repeat(turn, count) << 40 | words.reshape(-1))  # lanes that want one word share it
        turns, first = np.unique(pairs >> 40, return_index=True)
        load = np.bincount(
            np.repeat(np.arange(turns.size), np.diff(np.append(first, pairs.size))) * _BANKS + pairs % _BANKS,
            minlength=turns.size * _BANKS,
        )
        passes = int(load.reshape(-1, _BANKS).max(axis=1).sum())
        self.passes += passes
        self.extra_passes += passes - turns.size

    def of_global(self, warps: np.ndarray, offsets: np.ndarray, width: int) -> None:
        """Count one instruction; an access lies in one sector, since it is aligned to its width."""
        self.sectors += np.unique(warps << 40 | offsets // _SECTOR).size
        self.bytes += offsets.size * width

    def add(self, other: "Traffic") -> None:
        self.passes += other.passes
        self.extra_passes += other.extra_passes
        self.sectors += other.sectors
        self.bytes += other.bytes
