"""Read and write .safetensors files: the library validates, the arrays are views of the file.

Texts, which the format does not know, are two tensors: ``train/id/utf8`` (uint8, all texts end to end) and
``train/id/offsets`` (int64, N + 1 positions).
"""

import json
import math
import struct
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError
from . import columns
from .mapping import FileData, diagnose, row_blocks

FORMAT = "rohydr_fast/mmsa"
MAX_HEADER = 1 << 20
_DTYPES = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "|b1",
    "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip
_WORDS = {dtype: word for word, dtype in _DTYPES.items()}


def read(data: FileData) -> dict[str, np.ndarray]:
    """Name -> array; pairs of text tensors become one array of texts.

    Raises:
        DataError: the header is damaged or describes something else than the file's bytes, or a type is not supported.
    """
    header = _header(data)
    base = 8 + struct.unpack_from("<Q", data.view)[0]
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            arrays[name] = _tensor(data, base, name, entry)
    return _join_texts(data, arrays, _text_kinds(header))


def write(file: BinaryIO, flat: dict[str, np.ndarray], path: str) -> None:
    """Write tensors block by block, so that a data set larger than memory can be converted.

    The library's writer wants every tensor in memory; the format is simple enough to stream, and the library reads the
    result back when it is opened.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, array in flat.items():
        if array.dtype.kind in "OUS":
            tensors[f"{name}/utf8"], tensors[f"{name}/offsets"] = _split_texts(array)
        elif array.dtype.newbyteorder("<").str not in _WORDS:
            raise DataError(f"{path}: {name} must hold numbers or text, got type {array.dtype}. Save it as float32.")
        else:
            tensors[name] = array
    kinds = {name: array.dtype.str for name, array in flat.items() if array.dtype.kind in "OU"}
    notes = {"format": FORMAT, "version": "1", "texts": json.dumps(kinds, sort_keys=True)}
    header: dict[str, Any] = {"__metadata__": notes}
    position = 0
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))  # keeps tensors aligned
    for name, array in ordered:
        word = _WORDS[array.dtype.newbyteorder("<").str]
        header[name] = {
            "dtype": word,
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, array in ordered:
        for block in row_blocks(array):
            file.write(block.astype(block.dtype.newbyteorder("<"), copy=False).tobytes())


def _header(data: FileData) -> dict[str, Any]:
    size = struct.unpack_from("<Q", data.view)[0] if data.size >= 8 else 0
    if not 2 <= size <= MAX_HEADER or bytes(data.view[8:9]) != b"{":
        hint = diagnose(data) or "this is not a .safetensors file. Check what wrote the file."
        raise DataError(f"{data.path}: {hint}")
    if 8 + size > data.size:
        raise DataError(f"{data.path}: the file ends too early: it is truncated. Download or copy it again.")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(data.path, framework="numpy"):
            pass
        header = json.loads(bytes(data.view[8 : 8 + size]))
    except SafetensorError as error:
        raise DataError(f"{data.path}: the file is damaged ({error}). Download or copy it again.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{data.path}: the file's header is damaged. Download or copy it again.") from None
    return header


def _tensor(data: FileData, base: int, name: str, entry: dict[str, Any]) -> np.ndarray:
    where = f"{data.path}: {columns.shown(name)}"
    word = _DTYPES.get(entry["dtype"])
    if word is None:
        raise DataError(f"{where}: must have a type that numpy knows, got {entry['dtype']}. Save it as F32.")
    dtype, shape = np.dtype(word), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    fits = 0 <= begin <= end <= data.size - base and math.prod(shape) * dtype.itemsize == end - begin
    if not fits or len(shape) > 8 or any(length > data.size for length in shape):
        raise DataError(f"{where}: must have as many bytes as its shape {shape} says. Save it again.")
    return data.array(base + begin, dtype, shape)


def _split_texts(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    items = array.reshape(-1).tolist()
    pieces = [item if isinstance(item, bytes) else item.encode("utf-8", "surrogatepass") for item in items]
    offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    return np.frombuffer(b"".join(pieces), np.uint8), offsets


def _text_kinds(header: dict[str, Any]) -> dict[str, str]:
    """Name -> numpy type word of the texts, as `write` noted them; no note is no error."""
    try:
        kinds = json.loads(header.get("__metadata__", {}).get("texts", "{}"))
    except (ValueError, RecursionError):
        return {}
    return kinds if isinstance(kinds, dict) else {}


def _join_texts(data: FileData, arrays: dict[str, np.ndarray], kinds: dict[str, str]) -> dict[str, np.ndarray]:
    for name in [name.removesuffix("/utf8") for name in arrays if name.endswith("/utf8")]:
        blob, offsets = arrays.pop(f"{name}/utf8"), arrays.pop(f"{name}/offsets", None)
        where = f"{data.path}: {columns.shown(name)}"
        known = offsets is not None and offsets.dtype == np.int64 and blob.dtype == np.uint8
        if not known or offsets.ndim != 1 or blob.ndim != 1:
            raise DataError(f"{where}: texts must be the two tensors utf8 (U8) and offsets (I64). Save it again.")
        ends = offsets.tolist()
        if not ends or ends[0] != 0 or ends[-1] != len(blob) or bool((np.diff(offsets) < 0).any()):
            raise DataError(f"{where}: offsets must rise from 0 to the number of bytes. Save it again.")
        text = blob.tobytes()
        try:
            pairs = zip(ends[:-1], ends[1:], strict=True)
            items = [text[begin:end].decode("utf-8", "surrogatepass") for begin, end in pairs]
        except UnicodeDecodeError:
            raise DataError(f"{where}: texts must be UTF-8. Save it again.") from None
        arrays[name] = columns.compact_texts(items, kinds.get(name))
    return arrays
