"""Stand-ins for numpy's classes in a pickle, and the arrays made from their parts.

Used by `safe_pickle` only. Nothing here runs code that a file names; every argument is checked before it is used.
"""

import math
import re
from typing import Any

import numpy as np

MAX_ITEMS = 2_000_000
"""Elements that object arrays, or lists with their repetitions written out, may have."""
MAX_DEPTH = 16
MAX_DIMENSIONS = 8

_CORE = [f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "_multiarray_umath")]
GLOBALS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
    ("_codecs", "encode"): "encode",
    ("builtins", "bytes"): "bytes",
    ("__builtin__", "bytes"): "bytes",
    ("collections", "OrderedDict"): "ordered_dict",
    **{(module, "_reconstruct"): "reconstruct" for module in _CORE},
    **{(module, "scalar"): "scalar" for module in _CORE},
}
"""Names that a pickle may mention, and our word for each."""

NUMBERS = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])
"""Number types that a data file may hold."""
TEXT = re.compile(r"[US][1-9][0-9]{0,7}")
"""Text types that a data file may hold."""
_PLAIN = (str, int, float, bool, type(None))
_RAW = (bytes, memoryview)


class Refused(Exception):
    """One sentence and its remedy, without the file's name."""


class Damaged(Refused):
    """The file is not what its writer wrote."""

    def __init__(self, sentence: str = "the pickle is damaged. Download or copy the file again."):
        super().__init__(sentence)


def refuse_content(what: str) -> Refused:
    """The error for a file that asks for more than data."""
    return Refused(
        f"a data pickle must hold only numpy arrays, lists, dicts, text and numbers, got {what}. "
        "Nothing was run; use the original file, or save its arrays as .npz."
    )


def short(value: Any) -> str:
    """A file's word for an error message: never the repr of a container, which may be endless."""
    if type(value) is not str:
        return f"a {type(value).__name__}"
    return ascii(value[:80])[1:-1] + ("..." if len(value) > 80 else "")


class Name:
    """A name that a pickle may call: a word of our own, never an object of another module."""

    __slots__ = ("word",)

    def __init__(self, word: str):
        self.word = word


class Dtype:
    """Stands for numpy.dtype: one of the words above, and a byte order."""

    __slots__ = ("word", "order", "_numpy")

    def __init__(self, args: tuple):
        word = args[0] if 1 <= len(args) <= 3 else None
        if type(word) is not str or not (word in NUMBERS or word in ("O", "O8") or TEXT.fullmatch(word)):
            raise refuse_content(f"a dtype that is none of float, integer, bool, text: {short(word)}")
        if any(type(flag) not in (bool, int) for flag in args[1:]):
            raise Damaged
        self.word, self.order, self._numpy = word, None, None

    def build(self, state: Any) -> None:
        """Take the byte order from the state of a simple dtype, (3, order, None, None, None, int, int, int)."""
        if self.order is not None or type(state) is not tuple or len(state) != 8:
            raise refuse_content("a dtype with an unknown state")
        version, order, subtype, names, fields, *numbers = state
        if any(part is not None for part in (subtype, names, fields)):
            raise refuse_content("a structured dtype")
        if any(type(number) is not int for number in (version, *numbers)) or version != 3:
            raise refuse_content("a dtype with an unknown state")
        if type(order) is not str or order not in ("<", ">", "|", "="):
            raise refuse_content("a dtype with an unknown byte order")
        self.order = order

    def numpy(self) -> np.dtype:
        """The numpy type; "=" (the writer's own order) is read as little-endian."""
        if self._numpy is None:
            self._numpy = np.dtype((">" if self.order == ">" else "<") + self.word)
        return self._numpy

    @property
    def is_object(self) -> bool:
        return self.word[0] == "O"


class Array:
    """Stands for a numpy array: `value` is None until it is built, then the array, or for objects
    (items, shape, order).
    """

    __slots__ = ("value",)

    def __init__(self, value: Any = None):
        self.value = value


class Assembler:
    """Makes arrays as views of the file's bytes. One byte of the file becomes at most one byte of arrays."""

    def __init__(self, size: int):
        self.size, self.bytes_left, self.items_left = size, size, MAX_ITEMS

    def array(self, shape: Any, dtype: Any, order: str, raw: Any) -> Any:
        """The array, or (items, shape, order) for an object array, after the sizes have been compared."""
        if type(dtype) is not Dtype or type(shape) is not tuple or len(shape) > MAX_DIMENSIONS:
            raise refuse_content("an array with an unknown shape or dtype")
        if any(type(length) is not int for length in shape):
            raise refuse_content("an array whose shape is not made of integers")
        if any(not 0 <= length <= self.size for length in shape):
            raise refuse_content(f"an array of the impossible shape {shape}")
        count = math.prod(shape)
        if dtype.is_object:
            if type(raw) is not list or len(raw) != count:
                raise refuse_content(f"an object array of shape {shape} without its elements")
            self.items_left -= count
            if self.items_left < 0:
                raise refuse_content(f"more than {MAX_ITEMS:,} elements in object arrays")
            return raw, shape, order
        target = dtype.numpy()
        if type(raw) not in _RAW or len(raw) != count * target.itemsize:
            got = f"{len(raw):,} bytes" if type(raw) in _RAW else "no bytes"
            raise refuse_content(f"{got} for an array of shape {shape} and type {target.str}")
        if count == 0:
            return np.empty(shape, target)
        return self._view(raw, target).reshape(shape, order=order)

    def scalar(self, dtype: Any, raw: Any) -> np.generic:
        """A numpy scalar."""
        if type(dtype) is not Dtype or dtype.is_object or type(raw) not in _RAW:
            raise refuse_content("a numpy scalar of an unknown type")
        target = dtype.numpy()
        if len(raw) != target.itemsize:
            raise refuse_content(f"{len(raw):,} bytes for a scalar of type {target.str}")
        return self._view(raw, target)[0]

    def _view(self, raw: Any, dtype: np.dtype) -> np.ndarray:
        self.bytes_left -= len(raw)
        if self.bytes_left < 0:
            raise refuse_content("arrays that share their bytes")
        array = np.frombuffer(raw, dtype)
        if dtype.kind == "U" and int(array.view(dtype.str[0] + "u4").max()) > 0x10FFFF:  # numpy does not check
            raise refuse_content("text with impossible characters")
        if dtype.kind == "b" and int(array.view(np.uint8).max()) > 1:
            raise refuse_content("truth values other than 0 and 1")
        return array


class Finish:
    """Turns a machine's result into plain data: stand-ins become arrays, and no list, dict or tuple holds itself."""

    def __init__(self) -> None:
        self.done: dict[int, tuple[Any, int]] = {}  # id -> (value, size as if shared parts were repeated)

    def convert(self, value: Any, depth: int = 0) -> tuple[Any, int]:
        """The value and its number of parts."""
        kind = type(value)
        if kind in _PLAIN or isinstance(value, np.generic):
            return value, 1
        if kind in _RAW:
            return bytes(value), 1
        if kind not in (Array, list, tuple, dict):
            raise refuse_content("a class instead of a value")
        if id(value) in self.done:
            return self.done[id(value)]
        if depth >= MAX_DEPTH:
            raise refuse_content(f"lists nested more than {MAX_DEPTH} deep, or one that holds itself")
        result = self._array(value) if kind is Array else self._container(value, kind, depth)
        self.done[id(value)] = result
        return result

    def _container(self, value: Any, kind: type, depth: int) -> tuple[Any, int]:
        size, parts = 1, []
        for item in value.values() if kind is dict else value:
            part, part_size = self.convert(item, depth + 1)
            size += part_size
            if size > MAX_ITEMS:
                raise refuse_content(f"more than {MAX_ITEMS:,} elements in lists")
            parts.append(part)
        if kind is dict:
            return dict(zip(value, parts, strict=True)), size
        return (parts if kind is list else tuple(parts)), size

    def _array(self, value: Array) -> tuple[Any, int]:
        if value.value is None:
            raise Damaged
        if type(value.value) is np.ndarray:
            return value.value, 1
        items, shape, order = value.value
        array = np.empty(math.prod(shape), object)
        if len(items) != len(array):  # the list grew after the array was built
            raise Damaged
        for index, item in enumerate(items):
            if type(item) not in _PLAIN and not isinstance(item, np.generic):
                raise refuse_content("an object array whose elements are not text or numbers")
            array[index] = item
        return array.reshape(shape, order=order), 1 + len(items)
