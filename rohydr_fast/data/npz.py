"""Read and write .npz files: members are views of the file unless they are compressed, and nothing is unpickled."""

import io
import math
import re
import struct
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

from ..errors import DataError
from . import columns
from .mapping import FileData, diagnose, row_blocks
from .pickle_parts import NUMBERS, TEXT

MAX_DIRECTORY = 1 << 20  # bytes; a data set's directory has a few thousand
MAX_RATIO = 100
"""A compressed file may unpack to this many times its size (and to 64 MiB in any case)."""
_FREE = 64 << 20
_HEADER = re.compile(
    rb"\{'descr': '([<>|=])([a-zA-Z][0-9]{1,8})', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9, ]{0,200})\),? ?\} *\n"
)
_MAX_HEADER = 10_000


def read(data: FileData) -> dict[str, np.ndarray]:
    """Name (without .npy) -> array. The checksum of uncompressed members is not computed.

    Raises:
        DataError: the archive or a member is damaged, too large when unpacked, or holds anything but numbers and text.
    """
    if bytes(data.view[:4]) != b"PK\x03\x04":
        hint = diagnose(data) or "this is not an .npz archive. Check what wrote the file."
        raise DataError(f"{data.path}: {hint}")
    try:
        _check_directory(data)
        with zipfile.ZipFile(io.BufferedReader(_View(data.view))) as archive:
            members = archive.infolist()
            _check_members(data, members)
            return {member.filename.removesuffix(".npy"): _member(data, archive, member) for member in members}
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError, ValueError):
        raise DataError(f"{data.path}: the archive is damaged. Download or copy the file again.") from None


def write(file: BinaryIO, flat: dict[str, np.ndarray], path: str) -> None:
    """Write an uncompressed .npz, which can be mapped when it is read.

    Raises:
        DataError: texts of very different lengths, which numpy would pad to gigabytes.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in flat.items():
            if array.dtype.kind == "O":
                array = columns.compact_texts(list(array))
            if array.dtype.kind == "O":
                raise DataError(f"{path}: the texts of {name} are too uneven for .npz. Write .safetensors.")
            header = np.lib.format.header_data_from_array_1_0(array) | {"fortran_order": False}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for block in row_blocks(array):
                    member.write(block.view(np.uint8).data if block.dtype.kind != "U" else block.tobytes())


class _View(io.RawIOBase):
    """A memoryview as a file, for zipfile."""

    def __init__(self, view: memoryview):
        self._view, self._position = view, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        if base + offset < 0:
            raise ValueError("a position before the file's begin")
        self._position = base + offset
        return self._position

    def readinto(self, buffer) -> int:
        piece = self._view[self._position : self._position + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _check_directory(data: FileData) -> None:
    """The archive's directory is small: zipfile reads it whole."""
    tail = bytes(data.view[-(22 + 0xFFFF) :])
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) - place < 22:
        raise DataError(f"{data.path}: the archive ends too early: it is truncated. Download or copy the file again.")
    sizes = [struct.unpack_from("<I", tail, place + 12)[0]]
    if place >= 20 and tail[place - 20 : place - 16] == b"PK\x06\x07":
        offset = struct.unpack_from("<Q", tail, place - 12)[0]
        if offset + 56 <= data.size:
            sizes.append(struct.unpack_from("<Q", data.view, offset + 40)[0])
    if max(sizes) > MAX_DIRECTORY:
        raise DataError(f"{data.path}: the archive must hold a few dozen arrays, got many more. Save one for each key.")


def _check_members(data: FileData, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise DataError(f"{data.path}: the archive must hold each name once, got one twice. Save it again.")
    for member in members:
        if not member.filename.endswith(".npy"):
            name = columns.shown(member.filename)
            raise DataError(f"{data.path}: the archive must hold .npy arrays, got {name}. Save it with numpy.savez.")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{data.path}: the archive must be stored or deflated. Save it with numpy.savez.")
    unpacked = sum(member.file_size for member in members if member.compress_type != zipfile.ZIP_STORED)
    if unpacked > max(MAX_RATIO * data.size, _FREE):
        raise DataError(
            f"{data.path}: the archive must unpack to at most {MAX_RATIO} times its size, got {unpacked:,} bytes from "
            f"{data.size:,}. Save it with numpy.savez (uncompressed)."
        )


def _member(data: FileData, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type == zipfile.ZIP_STORED:
        start, source = _stored_offset(data, member), data
    else:
        with archive.open(member) as file:
            start, source = 0, FileData(data.path, file.read(member.file_size))
    where = f"{data.path}: {columns.shown(member.filename)}"
    end = start + member.file_size
    if end > source.size:
        raise DataError(f"{where} ends too early. Download or copy the file again.")
    head = bytes(source.view[start : min(end, start + _MAX_HEADER + 12)])
    if head[:6] != b"\x93NUMPY" or len(head) < 12 or head[6] not in (1, 2, 3):
        raise DataError(f"{where} is not an array. Save it with numpy.savez.")
    layout, begin = ("<H", 10) if head[6] == 1 else ("<I", 12)
    size = struct.unpack_from(layout, head, 8)[0]
    match = _HEADER.fullmatch(head[begin : begin + size]) if size <= _MAX_HEADER else None
    word = match.group(2).decode() if match else ""
    if word not in NUMBERS and not TEXT.fullmatch(word):
        raise DataError(f"{where} must hold numbers or text of one kind. Save no objects: use allow_pickle=False.")
    dtype = np.dtype((">" if match.group(1) == b">" else "<") + word)
    shape = tuple(int(length) for length in match.group(4).decode().split(",") if length.strip())
    count, offset = math.prod(shape), start + begin + size
    if len(shape) > 8 or any(length > source.size for length in shape) or count * dtype.itemsize != end - offset:
        raise DataError(f"{where} must have as many bytes as its shape {shape} says. Save it again.")
    array = source.array(offset, dtype, shape, "F" if match.group(3) == b"True" else "C")
    if dtype.kind == "U" and count and int(array.reshape(-1).view(dtype.str[0] + "u4").max()) > 0x10FFFF:
        raise DataError(f"{where} holds text with impossible characters. Save it again.")
    return array


def _stored_offset(data: FileData, member: zipfile.ZipInfo) -> int:
    """Where an uncompressed member's bytes begin: its local header has its own name and extra lengths."""
    begin = member.header_offset
    if begin < 0 or begin + 30 > data.size or bytes(data.view[begin : begin + 4]) != b"PK\x03\x04":
        raise zipfile.BadZipFile
    if member.compress_size != member.file_size:
        raise zipfile.BadZipFile
    name, extra = struct.unpack_from("<HH", data.view, begin + 26)
    return begin + 30 + name + extra
