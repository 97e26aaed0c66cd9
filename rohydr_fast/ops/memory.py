"""Memory for large results, in large pages and used again.

A first touch of fresh memory costs more than what the core computes there: 0.4 ms a MB in pages of 4 KiB on a virtual
machine, 0.1 ms in large ones, and 1 ms where the machine's host has taken them back. The allocator of the C library
gives memory of this size back to the system at every training step.
"""

import mmap
import os
import weakref
from collections import deque
from math import prod

import numpy as np
import torch
from torch import Tensor

LARGE = 2**20
"""Bytes from which on memory comes from here."""
KEPT = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8 if hasattr(os, "sysconf") else 0
"""Bytes of free memory that are kept for later results at most: an eighth of the machine's."""

_SLACK = 1.25
_free: deque[mmap.mmap] = deque()  # its methods are atomic: a lock could be held when the garbage collector frees more


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A contiguous CPU tensor without content, freed as any other."""
    size = prod(shape) * dtype.itemsize
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE") or torch.are_deterministic_algorithms_enabled():
        return torch.empty(shape, dtype=dtype)
    memory = _take(size)
    array = np.frombuffer(memory, dtype=np.uint8, count=size)
    weakref.finalize(array, _give_back, memory).atexit = False
    return torch.from_numpy(array).view(dtype).view(shape)


def _take(size: int) -> mmap.mmap:
    for memory in list(_free):
        if size <= len(memory) <= _SLACK * size:
            try:
                _free.remove(memory)
            except ValueError:  # another thread has it
                continue
            return memory
    dropped = 0
    for memory in list(_free):  # so that what is kept does not pile up; a small one does not drive out a large one
        if dropped >= size:
            break
        if len(memory) > _SLACK * size:
            continue
        try:
            _free.remove(memory)
            dropped += len(memory)
        except ValueError:  # another thread has it
            continue
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a system without large pages
        pass
    return memory


def _give_back(memory: mmap.mmap) -> None:
    if len(memory) > KEPT:  # the others would go for it
        return
    _free.append(memory)
    while sum(map(len, list(_free))) > KEPT:
        try:
            _free.popleft()
        except IndexError:
            return
