"""How much memory a call needs at its peak, above what the process held before. For Linux, in a process of its own.

The kernel counts the pages that are resident (VmRSS) and their largest number (VmHWM), which /proc/self/clear_refs
sets back. So torch's tensors count as much as those of a native core, and what was reserved but never touched does not.
"""

import contextlib
import ctypes
import gc
import resource
from collections.abc import Callable
from pathlib import Path

MIB = 2**20
STATUS, CLEAR, MACHINE = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
SHARE = 0.9
"""Of the memory that is free at the beginning, how much a call may take."""


class OutOfMemory(Exception):
    """The call needs more memory than is free."""


def why_not() -> str | None:
    """Why it cannot be measured here; None when it can."""
    try:
        _reset()
    except OSError as error:
        return f"the peak memory of a process cannot be measured here: {error}"
    return None


def peak_mib(call: Callable[[], object]) -> float:
    """MiB of the peak during `call` above the beginning. What was freed before is given back to the system first.

    Raises:
        OutOfMemory: the call wanted more than `SHARE` of the memory that was free.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc's; freed memory that is used again would not be seen
    free = _kib(MACHINE, "MemAvailable")
    before = _kib(STATUS, "VmRSS")
    _reset()
    with _limit(_kib(STATUS, "VmData") * 1024 + int(SHARE * free * 1024)):
        try:
            call()
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or "memory" in str(error):
                raise OutOfMemory(f"needs more memory than the {SHARE * free / 1024:.0f} MiB that are free") from error
            raise
    return (_kib(STATUS, "VmHWM") - before) * 1024 / MIB


def _reset() -> None:
    CLEAR.write_text("5")


def _kib(path: Path, field: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])


@contextlib.contextmanager
def _limit(bytes_of_data: int):
    """An allocation beyond it fails, where the system would kill a process, perhaps somebody else's."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (bytes_of_data, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
