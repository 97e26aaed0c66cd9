"""Weights in the layout of the native core, kept from call to call.

An entry is found by the addresses, shapes and dtypes of the parameters, but what makes it right is its content: the
core compares the bytes of the parameters with what it packed at every call, and packs again when they differ. A
parameter can therefore change in any way, by an optimizer, through `.data`, through numpy, and is never missed.
"""

from collections import OrderedDict
from collections.abc import Sequence
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
        self._entries: OrderedDict[tuple, tuple[object, int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes that the entries hold: packed weights and the parameters that they keep alive."""
        return self._bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def get(self, kind: str, tensors: Sequence[Tensor], num_heads: int, double: bool):
        """The `PackedWeights` of these parameters.

        Args:
            kind: "denoiser" or "block", what `_C.pack_<kind>` takes.
            tensors: CPU parameters in the order of use; float32, float64 or bfloat16.
            num_heads: H.
            double: float64 arithmetic.
        """
        key = (
            kind,
            num_heads,
            double,
            all([tensor.is_contiguous() for tensor in tensors]),
            tuple([tensor.data_ptr() for tensor in tensors]),
            tuple([tensor.shape for tensor in tensors]),
            tuple([tensor.dtype for tensor in tensors]),
        )
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry[0]
        # Outside the lock: two threads may pack the same parameters, and the later one stays.
        arrays = [as_array(tensor) for tensor in tensors]
        packed = _pack(kind, arrays, num_heads, double)
        if all([is_dense(tensor) for tensor in tensors]):  # nobody will ask again for the address of a copy
            packed.refresh()  # the core packs at the first use; the size is known after it
            with self._lock:
                self._put(key, packed, packed.nbytes + sum(array.nbytes for array in arrays))
        return packed

    def _put(self, key: tuple, packed, size: int) -> None:
        if key in self._entries:
            self._bytes -= self._entries.pop(key)[1]
        self._entries[key] = (packed, size)
        self._bytes += size
        while len(self._entries) > self.max_entries or self._bytes > self.max_bytes:
            self._bytes -= self._entries.popitem(last=False)[1][1]


CACHE = PackingCache()
"""The cache of this process."""


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


def _pack(kind: str, arrays: list[np.ndarray], num_heads: int, double: bool):
    return getattr(_native.load(), f"pack_{kind}")(arrays, num_heads, double)
