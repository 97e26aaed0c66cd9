"""Open a data file: no blocking, no surprise, and large files mapped instead of read."""

import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError, FileAccessError

MAP_FROM = 64 << 20
"""Files of this many bytes or more are memory-mapped; smaller ones are read."""

CHUNK = 16 << 20
"""Bytes that a scan of a mapped file holds at a time."""

_LFS = b"version https://git-lfs.github.com/spec/"


class FileData:
    """The bytes of one file: `raw` (bytes or mmap), `view` (memoryview of it), `size`, `path` as the user wrote it."""

    def __init__(self, path: str, raw: bytes | mmap.mmap):
        self.path, self.raw, self.view, self.size = path, raw, memoryview(raw), len(raw)

    def array(self, offset: int, dtype: np.dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
        """A read-only array over the bytes at `offset`; the caller has checked that they lie in the file."""
        count = int(np.prod(shape, dtype=object))
        if count == 0:
            return np.empty(shape, dtype)
        return np.frombuffer(self.view, dtype, count, offset).reshape(shape, order=order)

    def sha256(self) -> str:
        """The file's SHA-256, read in chunks."""
        digest = hashlib.sha256()
        for start in range(0, self.size, CHUNK):
            digest.update(self.view[start : start + CHUNK])
            self.release()
        return digest.hexdigest()

    def release(self) -> None:
        """Take a mapped file's pages out of this process; they are read again when needed."""
        if isinstance(self.raw, mmap.mmap):
            _drop(self.raw, 0, len(self.raw))


def open_file(path: str | os.PathLike) -> FileData:
    """Open a regular file for reading.

    Raises:
        FileAccessError: it does not exist, cannot be read, or is a directory, pipe or device.
        DataError: it is empty.
    """
    name = os.fspath(path)
    try:
        _require_regular(name, os.stat(name).st_mode)
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _require_regular(name, status.st_mode)  # the name may have been given to something else meanwhile
            if status.st_size == 0:
                raise DataError(f"{name}: the file must hold data, got an empty file. Download or write it again.")
            if status.st_size < MAP_FROM:
                return FileData(name, file.read())
            return FileData(name, mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise FileAccessError(f"{name}: the file does not exist. Check the path.") from None
    except PermissionError:
        raise FileAccessError(f"{name}: the file cannot be read. Check its permissions.") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise FileAccessError(f"{name!r}: not a possible file name ({error}). Check the path.") from None
    except OSError as error:
        if isinstance(error, FileAccessError):
            raise
        raise FileAccessError(f"{name}: the file cannot be read ({error.strerror or error}). Check the path.") from None


def release(array: np.ndarray, first: int = 0, last: int | None = None) -> None:
    """Take rows `first`..`last` of a mapped, C-contiguous array out of this process's memory; else do nothing.

    Only a hint to the system: the values stay what they are.
    """
    mapped = _mapping_of(array)
    if mapped is None or not array.flags.c_contiguous:
        return
    begin = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    stride = array.strides[0] if array.ndim else array.itemsize
    last = len(array) if last is None else last
    _drop(mapped, begin + first * stride, begin + last * stride)


def row_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """C-contiguous pieces of an array, whole rows of at most about 16 MiB each, in order."""
    if array.ndim == 0:
        yield array.reshape(1)
        return
    rows = max(1, CHUNK // max(1, array[:1].nbytes))
    for first in range(0, len(array), rows):
        yield np.ascontiguousarray(array[first : first + rows])
        release(array, first, min(first + rows, len(array)))


def diagnose(data: FileData) -> str | None:
    """What a file that is not what its name says really is, with the remedy, or None if that cannot be told."""
    head = bytes(data.view[:4096])
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(_LFS):
        return "this is a git-lfs pointer, not the data. Run git lfs pull."
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "this is a web page, not the data. Download the file itself: the link needs a login or a confirmation."
    if head.startswith(b"PK\x03\x04"):
        return "this is a zip archive. Name it .npz if numpy wrote it, or unpack it."
    for magic, kind, remedy in (
        (b"\x1f\x8b", "gzip", "Run gunzip."),
        (b"BZh", "bzip2", "Run bunzip2."),
        (b"\xfd7zXZ", "xz", "Run unxz."),
        (b"\x89HDF", "HDF5", "Write its arrays to .npz with the keys train/audio and so on."),
        (b"\x93NUMPY", "single .npy", "Write the whole schema to .npz with the keys train/audio and so on."),
    ):
        if head.startswith(magic):
            return f"this is a {kind} file. {remedy}"
    return None


def looks_like_text(data: FileData) -> bool:
    """The first 4 KiB are ASCII text."""
    return all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in bytes(data.view[:4096]))


def damaged_as_text(data: FileData) -> bool:
    """A transfer turned every line feed into CRLF, or bytes that are no UTF-8 into replacement characters."""
    sample = bytes(data.view[: 1 << 20])
    feeds = sample.count(b"\n")
    return sample.startswith(b"\xef\xbf\xbd") or (feeds > 2 and feeds == sample.count(b"\r\n"))


def display_name(path: str) -> str:
    """The file's name without folder and suffix: the data set's name."""
    return Path(path).stem


def _require_regular(name: str, mode: int) -> None:
    for test, kind in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            raise FileAccessError(f"{name}: must be a file, got {kind}. Name the data file itself.")


def _mapping_of(array: np.ndarray) -> mmap.mmap | None:
    base = array
    while base is not None:
        if isinstance(base, mmap.mmap):
            return base
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return None


def _drop(mapped: mmap.mmap, begin: int, end: int) -> None:
    if not hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        return
    begin -= begin % mmap.PAGESIZE
    if end > begin:
        mapped.madvise(mmap.MADV_DONTNEED, begin, end - begin)
