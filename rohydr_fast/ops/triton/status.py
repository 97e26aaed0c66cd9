"""Whether Triton's kernels can run here, said without importing Triton or torch where that can be avoided."""

import ctypes
import os
import sys
from functools import cache
from importlib import metadata

LEAST = (3, 6)
HEAD_DIMS = (4, 8, 16, 32, 64)
MAX_WIDTH = 512
"""Channels of a token: the way back through LayerNorm holds whole rows in registers."""
DTYPES = ("float32", "bfloat16")
INTERPRETER = "TRITON_INTERPRET"


def on_device() -> tuple[bool, str]:
    """Whether they run on a CUDA device of this machine, and the reason as a sentence."""
    version, reason = installed()
    if version is None:
        return False, reason
    if os.environ.get(INTERPRETER) == "1":
        return False, f"{INTERPRETER}=1 makes Triton interpret its kernels, on the CPU alone"
    if not _driver_shows_device():
        return False, "this machine shows no CUDA device, which the Triton kernels need"
    import torch

    if not torch.cuda.is_available():
        return False, f"torch {torch.__version__} cannot use the CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return False, f"the Triton kernels need compute capability 8.0 or more, and this device has {major}.{minor}"
    return True, f"Triton {version} on a CUDA device"


def interpreted() -> tuple[bool, str]:
    """Whether Triton's interpreter runs them on the CPU, and the reason as a sentence."""
    version, reason = installed()
    if version is None:
        return False, reason
    if os.environ.get(INTERPRETER) != "1":
        return False, (
            f"the Triton kernels run on a CUDA device; on the CPU they can be interpreted, for tests, where "
            f"{INTERPRETER}=1 is set before Python starts"
        )
    kernels = sys.modules.get("rohydr_fast.ops.triton.device")
    if kernels is not None and not kernels.INTERPRETED.value:
        return False, f"{INTERPRETER}=1 was set after the Triton kernels had been imported; set it before Python starts"
    return True, f"Triton {version} interprets its kernels on the CPU, for tests: thousands of times as slow"


@cache
def installed() -> tuple[str | None, str]:
    """The version of Triton, or None and why it cannot be used."""
    needed = ".".join(map(str, LEAST))
    install = f"Run: pip install 'triton>={needed}'"
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None, f"Triton is not installed. {install}"
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST:
        return None, f"the Triton kernels need Triton {needed} or more, and {version} is installed. {install}"
    return version, ""


@cache
def _driver_shows_device() -> bool:
    """Asked of the driver, so that a machine without a GPU need not load torch to say so."""
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
