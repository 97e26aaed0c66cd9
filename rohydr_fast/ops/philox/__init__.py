"""Random numbers as an explicit function of (seed, sample id, modality, step, element): Philox4x32-10, no state.

Element e of a sample is word e % 4 of the block with counter
    c0 = e // 4, c1 = step, c2 = sample_id & 0xffffffff, c3 = (sample_id >> 32) | modality << 16 | stream << 24
and key (seed & 0xffffffff, seed >> 32). Every backend gives the same integers; normals agree within 4 units in the
last place across backends and are bitwise repeatable within one, for any batch split and thread count.
The element of token t and channel c of a (T, C) representation is t * C + c: a longer T changes no number.
"""

import enum
import operator

import numpy as np
import torch

from ...errors import UsageError
from ..dispatch import in_func_transform
from ..registry import select
from . import native, reference

__all__ = ["Stream", "bits", "derive_seed", "normal", "uniform"]

_SEED_END = 2**64
_WORD_END = 2**32
_SAMPLE_ID_END = 2**48
_BYTE_END = 2**8
_COUNT_END = 2**34 + 1


class Stream(enum.IntEnum):
    """What a number is for: bits 24..31 of c3, so that no two uses share numbers."""

    START = 0
    STEP = 1
    FORWARD = 2
    FORWARD_PREVIOUS = 3
    TIME = 4
    MISSING = 5


def bits(
    seed: int, sample_ids, *, modality: int = 0, step: int = 0, stream: int, count: int, backend: str | None = None
) -> torch.Tensor:
    """The raw Philox words.

    Args:
        seed: in [0, 2**64).
        sample_ids: (B,) integers in [0, 2**48): a tensor, an array or a sequence.
        modality: in [0, 255]; 0, 1, 2 for a, t, v.
        step: in [0, 2**32).
        stream: a `Stream`, or any number in [0, 255].
        count: numbers per sample, in [0, 2**34].
        backend: a backend's name; None is the current selection, see `rohydr_fast.ops.select`.

    Returns:
        (B, count) int64 in [0, 2**32), on the CPU.

    Raises:
        UsageError: an argument out of its range; the message names it.
        BackendUnavailable: the named backend cannot run here.
    """
    return _draw("bits", seed, sample_ids, modality, step, stream, count, backend, "cpu")


def uniform(
    seed: int, sample_ids, *, modality: int = 0, step: int = 0, stream: int, count: int, backend: str | None = None
) -> torch.Tensor:
    """Uniform numbers in [0, 1), multiples of 2**-24: (B, count) float32 on the CPU. Arguments and errors as `bits`."""
    return _draw("uniform", seed, sample_ids, modality, step, stream, count, backend, "cpu")


def normal(
    seed: int,
    sample_ids,
    *,
    modality: int = 0,
    step: int = 0,
    stream: int,
    count: int,
    backend: str | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Standard normal numbers by Box-Muller on the word pairs (0, 1) and (2, 3) of each block.

    Arguments and errors as `bits`; `device` is where the result lies. On a CUDA device the numbers are made by the
    CUDA kernel when it is there, else on the CPU and copied. `sample_ids` on a CUDA device are copied to the CPU first,
    which waits for the device: keep them on the CPU.

    Under `torch.compile` and in transforms of `torch.func` it is the operation `torch.ops.rohydr_fast.philox_normal`:
    `sample_ids` must be a tensor, and the numbers are made on the CPU.

    Returns:
        (B, count) float32 on `device`, each within 4 ulp of the exact value.
    """
    if torch.compiler.is_compiling() or (in_func_transform() and isinstance(sample_ids, torch.Tensor)):
        return native.normal_operation(seed, sample_ids, modality, step, stream, count, backend).to(device)
    return _draw("normal", seed, sample_ids, modality, step, stream, count, backend, device)


def derive_seed(seed: int, *keys: int) -> int:
    """A 64-bit seed for a sub-purpose: words 0 and 1 of the Philox block with counter `keys` and key `seed`.

    Args:
        seed: in [0, 2**64).
        keys: up to four integers in [0, 2**32), padded with 0.

    Raises:
        UsageError: an argument out of its range, or more than four keys.
    """
    seed = _integer("derive_seed", "seed", seed, _SEED_END)
    if len(keys) > 4:
        raise UsageError(f"derive_seed: keys must be at most 4 integers, got {len(keys)}. Derive in two steps.")
    counter = [_integer("derive_seed", "keys", key, _WORD_END) for key in keys] + [0] * (4 - len(keys))
    low, high = reference.philox4x32(tuple(counter), (seed & 0xFFFFFFFF, seed >> 32))[:2]
    return int(low) | int(high) << 32


def _draw(kind, seed, sample_ids, modality, step, stream, count, backend, device) -> torch.Tensor:
    device = torch.device(device)
    request = (
        _integer("philox", "seed", seed, _SEED_END),
        _ids(sample_ids),
        _integer("philox", "modality", modality, _BYTE_END),
        _integer("philox", "step", step, _WORD_END),
        _integer("philox", "stream", stream, _BYTE_END),
        _integer("philox", "count", count, _COUNT_END),
    )
    name = select("philox", backend, device=device.type)
    if name == "cuda":
        target = device if device.type == "cuda" else torch.device("cuda")
        return native.fill_cuda(kind, *request, target).to(device)
    numbers = native.fill(kind, *request) if name == "cpp" else getattr(reference, kind)(*request)
    return torch.from_numpy(numbers).to(device)


def _integer(op: str, name: str, value, end: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < end:
        raise UsageError(f"{op}: {name} must be an integer in [0, {end - 1}], got {value!r}. Choose one in that range.")
    return number


def _ids(sample_ids) -> np.ndarray:
    """(B,) int64, contiguous and aligned; shares memory with the input where it can, and is only read."""
    array = sample_ids.detach().cpu().numpy() if isinstance(sample_ids, torch.Tensor) else np.asarray(sample_ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise UsageError(
            f"philox: sample_ids must be a (B,) sequence of integers, got shape {array.shape} of {array.dtype}. "
            "Pass for example batch.sample_id."
        )
    if array.size:
        outside = array[(array < 0) | (array >= _SAMPLE_ID_END)] if array.dtype.itemsize == 8 else array[array < 0]
        if outside.size:
            raise UsageError(
                f"philox: sample_ids must be in [0, {_SAMPLE_ID_END - 1}], got {outside[0]}. "
                "Make them with rohydr_fast.data.dataset.stable_sample_id."
            )
    ids = np.ascontiguousarray(array, dtype=np.int64)
    return ids if ids.flags.aligned else ids.copy()
