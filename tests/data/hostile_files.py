"""Files that are no data set of their suffix: name -> content, and words of the sentence that refuses it.

Contents of half a gigabyte are functions, which make them when they are needed.
"""

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from safetensors.numpy import save

from .hostile import HOSTILE

SUFFIXES = (".pkl", ".npz", ".safetensors")

WRONG = {
    "empty": (b"", "got an empty file"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "Run git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><html>", "web page"),
    "gzip": (b"\x1f\x8b\x08\0\0\0", "gzip"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "one array": (b"\x93NUMPY\x01\x00", "single .npy"),
    "text": (b"hello world\n" * 9, "text file|not an .npz|not a .safetensors"),
    "noise": (bytes(range(160, 255)) * 3, "not a pickle|not an .npz|not a .safetensors"),
}
"""Something else, whatever the suffix."""


def npy(descr: str = "'<f4'", shape: str = "(1,)", content: bytes = b"abcd") -> bytes:
    """A .npy file with a header of those words."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def zipped(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive; a name may be in it twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


BAD_MEMBERS = {
    "object": (npy("'|O'"), "numbers or text"),
    "structured": (npy("[('x', '<f4')]"), "numbers or text"),
    "datetime": (npy("'<M8[s]'"), "numbers or text"),
    "expression": (npy("__import__('os').system('touch canary')"), "numbers or text"),
    "deep": (npy("(" * 5000 + ")" * 5000), "numbers or text"),
    "too few bytes": (npy(shape="(2,)"), "as its shape"),
    "huge": (npy(shape="(1099511627776,)"), "as its shape"),
    "zero times huge": (npy(shape="(0, 1099511627776)", content=b""), "as its shape"),
    "negative": (npy(shape="(-1,)"), "numbers or text"),
    "impossible text": (npy("'<U1'", content=b"\xff\xff\xff\x7f"), "impossible characters"),
    "no array": (b"hello", "not an array"),
}
"""A member of an .npz."""

_BOMB = 400 << 20
BAD_ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no .npy": (lambda: zipped([("train/audio", npy())]), "must hold .npy arrays"),
    "a name twice": (lambda: zipped([("train/audio.npy", npy())] * 2), "each name once"),
    "5000 names": (lambda: zipped([(f"{'n' * 200}{n}.npy", b"") for n in range(5000)]), "a few dozen arrays"),
    "bzip2": (lambda: zipped([("train/audio.npy", npy())], zipfile.ZIP_BZIP2), "stored or deflated"),
    "bomb": (
        lambda: zipped(
            [("train/audio.npy", npy(shape=f"({_BOMB // 4},)", content=bytes(_BOMB)))], zipfile.ZIP_DEFLATED
        ),
        "at most 100 times its size",
    ),
    "no split": (lambda: zipped([("audio.npy", npy())]), "keys must look like train/audio"),
}
"""An .npz as a whole."""


def _tensors(header: dict, content: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def _texts(data: bytes, offsets: list[int], name: str = "train/id") -> bytes:
    return save({f"{name}/utf8": np.frombuffer(data, np.uint8), f"{name}/offsets": np.array(offsets, np.int64)})


_ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BAD_TENSORS = {
    "header of an exabyte": (struct.pack("<Q", 1 << 60) + b"{}", "not a .safetensors"),
    "header cut off": (struct.pack("<Q", 100) + b"{}", "truncated"),
    "no bytes": (_tensors({"a": _ENTRY}), "damaged"),
    "shape too large": (_tensors({"a": _ENTRY | {"shape": [2]}}, b"abcd"), "damaged"),
    "end beyond the file": (_tensors({"a": _ENTRY | {"data_offsets": [0, 1 << 60]}}, b"abcd"), "damaged"),
    "end before the start": (_tensors({"a": _ENTRY | {"data_offsets": [4, 0]}}, b"abcd"), "damaged"),
    "bytes left over": (_tensors({"a": _ENTRY}, b"abcdefgh"), "damaged"),
    "two at one place": (_tensors({"a": _ENTRY, "b": _ENTRY}, b"abcd"), "damaged"),
    "header nested deep": (struct.pack("<Q", 20_000) + b"{" + b"[" * 19_999, "damaged"),
    "type unknown to numpy": (_tensors({"a": _ENTRY | {"dtype": "BF16", "shape": [2]}}, b"abcd"), "type that numpy"),
    "texts without offsets": (save({"train/id/utf8": np.frombuffer(b"abc", np.uint8)}), "two tensors"),
    "offsets end early": (_texts(b"abc", [0, 2]), "offsets must rise"),
    "offsets start late": (_texts(b"abc", [1, 3]), "offsets must rise"),
    "offsets fall": (_texts(b"abc", [0, 5, 3]), "offsets must rise"),
    "no offsets": (_texts(b"abc", []), "offsets must rise"),
    "text not UTF-8": (_texts(b"\xff", [0, 1], "i"), "texts must be UTF-8"),
}
"""A .safetensors file."""


def all_files() -> Iterator[tuple[str, str, bytes]]:
    """Every hostile or broken file: what it is, its suffix and its content."""
    for name, content in HOSTILE.items():
        yield name, ".pkl", content
    for suffix in SUFFIXES:
        for name, (content, _) in WRONG.items():
            yield name, suffix, content
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        for name, (content, _) in BAD_MEMBERS.items():
            yield f"{name}, {compression}", ".npz", zipped([("train/audio.npy", content)], compression)
    for name, (make, _) in BAD_ARCHIVES.items():
        yield name, ".npz", make()
    for name, (content, _) in BAD_TENSORS.items():
        yield name, ".safetensors", content
