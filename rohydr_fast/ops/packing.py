"""What the native core keeps of parameters from call to call: weights in its layout, the layers of a conditioning.

An entry is found by the addresses, shapes and dtypes of the parameters, but what makes it right is its content: the
core compares the bytes of the parameters with what it packed at every call, and packs again when they differ. A
parameter can therefore change in any way, by an optimizer, through `.data`, through numpy, and is never missed.
"""

from collections import OrderedDict
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from .. import _native

MAX_ENTRIES = 32
MAX_BYTES = 256 * 2**20

_MAX_THREADS = 256  # of one call of the core


class PackingCache:
    """The least recently used entries go first, beyond `max_entries` of them or `max_bytes` in sum.

    An entry holds numpy views of the parameters, and with them their memory: no other tensor can come to lie at an
    address that is a key here. So a model that was deleted is freed when its entry goes. Safe for threads.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES):
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self._entries: OrderedDict[tuple, _Entry] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes that the entries hold: what was packed, and the parameters that they keep alive."""
        return self._bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def get(self, kind: str, tensors: list[Tensor], *options):
        """What `_C.pack_<kind>` makes of these parameters.

        Args:
            kind: "denoiser", "block" or "diffusion_loss", for a `PackedWeights`; "conditioning".
            tensors: CPU parameters in the order that it takes; float32, float64 or bfloat16.
            options: its other arguments, of weights num_heads H and whether the arithmetic is float64.
        """
        key = (kind, options, signature(tensors) or _described(tensors))
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                if entry.size() != entry.counted:
                    self._count(entry)
                return entry.packed
        # Outside the lock: two threads may pack the same parameters, and the later one stays.
        arrays = [as_array(tensor) for tensor in tensors]
        packed = _pack(kind, arrays, *options)
        if all([is_dense(tensor) for tensor in tensors]):  # nobody will ask again for the address of a copy
            if kind != "conditioning":  # which has nothing before its first use
                packed.refresh()  # the core packs at the first use; the size is known after it
            with self._lock:
                self._put(key, _Entry(packed, sum([array.nbytes for array in arrays])))
        return packed

    def _put(self, key: tuple, entry: "_Entry") -> None:
        if key in self._entries:
            self._bytes -= self._entries.pop(key).counted
        self._entries[key] = entry
        self._count(entry)

    def _count(self, entry: "_Entry") -> None:
        """What `entry` holds by now; others go for it."""
        size = entry.size()
        self._bytes += size - entry.counted
        entry.counted = size
        while len(self._entries) > self.max_entries or self._bytes > self.max_bytes:
            self._bytes -= self._entries.popitem(last=False)[1].counted


class _Entry:
    def __init__(self, packed, parameter_bytes: int):
        self.packed, self.parameter_bytes = packed, parameter_bytes
        self.counted = 0  # of its size: what was packed grows when it is used

    def size(self) -> int:
        return self.parameter_bytes + self.packed.nbytes


CACHE = PackingCache()
"""The packed weights of this process."""
LAYERS = PackingCache(max_entries=12, max_bytes=64 * 2**20)
"""The layers of its conditionings. By themselves: those of half-precision models are widened at every call, and such
copies must not drive out weights."""


def signature(tensors: list[Tensor]) -> bytes | None:
    """Where `tensors` lie and how: addresses, devices, dtypes, shapes and strides, for the time that they lie there.

    None where torch does not say it at once: without the core, of subclasses of tensors, traced ones and others that
    have no memory of their own.
    """
    loaded, _ = _native.status()
    return _native.load().signature(tensors) if loaded else None


def _described(tensors: list[Tensor]) -> tuple:
    """A `signature` in Python, for what has none; five times as slow."""
    return (
        tuple([tensor.is_contiguous() for tensor in tensors]),
        tuple([tensor.data_ptr() for tensor in tensors]),
        tuple([tensor.shape for tensor in tensors]),
        tuple([tensor.dtype for tensor in tensors]),
    )


def is_dense(tensor: Tensor) -> bool:
    """C-contiguous and aligned to its elements, so that the core can read it where it lies."""
    return tensor.is_contiguous() and tensor.data_ptr() % tensor.element_size() == 0


def as_array(tensor: Tensor) -> np.ndarray:
    """A numpy view of a CPU tensor, or of a dense copy of it; bfloat16 as the bits, uint16.

    As with any `.numpy()`, torch refuses to resize the storage of a tensor that was viewed, so a view cannot dangle.
    """
    if not is_dense(tensor):
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


def as_optional_array(tensor: Tensor | None) -> np.ndarray | None:
    """`as_array` of what may be None."""
    return None if tensor is None else as_array(tensor)


def native_threads() -> int:
    """The threads of a call of the core: torch's."""
    return min(torch.get_num_threads(), _MAX_THREADS)


def _pack(kind: str, arrays: list[np.ndarray], *options):
    return getattr(_native.load(), f"pack_{kind}")(arrays, *options)
