"""The (N,) columns of a split: numbers, lengths and texts, from arrays or lists."""

import re
from typing import Any

import numpy as np

from ..errors import DataError

_NUMBER = int | float | np.integer | np.floating


def shown(value: Any) -> str:
    """A file's text for a message: printable everywhere, and short."""
    text = value if isinstance(value, str) else str(type(value).__name__)
    return ascii(text[:60])[1:-1] + ("..." if len(text) > 60 else "")


def numbers(value: Any, where: str) -> np.ndarray:
    """(N,) float64 from an array (N,) or (N, 1), or a list of numbers or of arrays of one.

    Raises:
        DataError: another shape, or something that is not a number.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        if value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1):
            return value.reshape(-1).astype(np.float64)
        raise DataError(f"{where}: must have the shape (N,), got {value.shape}. Save one number for each clip.")
    if isinstance(value, np.ndarray) and (value.ndim != 1 or value.dtype.kind != "O"):
        raise DataError(
            f"{where}: must be numbers of shape (N,), got type {value.dtype} and shape {value.shape}. Save them so."
        )
    if not isinstance(value, list | tuple | np.ndarray):
        raise DataError(f"{where}: must be an array or a list, got a {type(value).__name__}. Save one value a clip.")
    return np.array([_number(item, row, where) for row, item in enumerate(value)], np.float64)


def whole_numbers(value: Any, count: int, where: str) -> np.ndarray:
    """(N,) int64 from an array or a list of `count` whole numbers.

    Raises:
        DataError: another number of entries, or one that is not a whole number.
    """
    found = numbers(value, where)
    if len(found) != count:
        raise DataError(f"{where}: must have {count} entries, one for each label, got {len(found)}. Save all of them.")
    wrong = np.flatnonzero(~(np.abs(found) < 2**53) | (found != np.floor(found)))
    if len(wrong):
        raise DataError(
            f"{where}: must be whole numbers, got {found[wrong[0]]:g} in row {wrong[0]}. Save lengths that count steps."
        )
    return found.astype(np.int64)


def texts(value: Any, count: int, where: str) -> list[str]:
    """`count` texts from an array or list of str, bytes or integers.

    Raises:
        DataError: another number of entries, or one that is none of these.
    """
    if not isinstance(value, list | tuple | np.ndarray) or (isinstance(value, np.ndarray) and value.ndim != 1):
        got = f"the shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise DataError(f"{where}: must be an array or list of {count} texts, got {got}. Save one text for each clip.")
    if len(value) != count:
        raise DataError(f"{where}: must have {count} entries, one for each label, got {len(value)}. Save all of them.")
    result = []
    for row, item in enumerate(value.tolist() if isinstance(value, np.ndarray) else value):
        if isinstance(item, bytes):
            item = item.decode("utf-8", "replace")
        if isinstance(item, bool) or not isinstance(item, str | int | np.integer):
            raise DataError(f"{where}: must be texts, got a {type(item).__name__} in row {row}. Save one text a clip.")
        result.append(str(item))
    return result


def attention_mask(text_bert: Any, count: int, steps: int) -> np.ndarray | None:
    """The attention mask (N, T) of a (N, 3, T) array of token ids, mask and token types; None if it is not one."""
    if not isinstance(text_bert, np.ndarray) or text_bert.dtype.kind not in "fiub":
        return None
    if text_bert.shape != (count, 3, steps):
        return None
    mask = text_bert[:, 1, :]
    return mask if bool(((mask == 0) | (mask == 1)).all()) else None


def _number(item: Any, row: int, where: str) -> float:
    if isinstance(item, np.ndarray) and item.size == 1:
        item = item.reshape(-1)[0]
    elif isinstance(item, list | tuple) and len(item) == 1:
        item = item[0]
    if isinstance(item, bool) or not isinstance(item, _NUMBER):
        raise DataError(f"{where}: must be numbers, got a {type(item).__name__} in row {row}. Save one number a clip.")
    return float(item)


def numbers_as_written(value: Any) -> np.ndarray:
    """A list of numbers of one kind as an array: int64, float64, bool, or the numpy type that all have.

    Raises:
        TypeError: an element is not a number.
    """
    if any(not isinstance(item, bool | np.bool_ | _NUMBER) for item in value):
        raise TypeError("not a list of numbers")
    return np.array(list(value))


def compact_texts(items: list[str], kind: str | None = None) -> np.ndarray:
    """Texts as a unicode array, or as an object array where padding all to the longest would waste memory.

    `kind` is the numpy type that is wanted (``"<U16"`` or ``"|O"``); it is heeded where it is possible.
    """
    longest = max((len(item) for item in items), default=0)
    wanted = int(kind[2:]) if isinstance(kind, str) and re.fullmatch(r"[<>]U[0-9]{1,8}", kind) else 0
    longest = max(1, longest, wanted)
    if kind == "|O" or longest * len(items) > 16 * sum(map(len, items)) + (1 << 20):
        array = np.empty(len(items), object)
        array[:] = items
        return array
    return np.array(items, dtype=f"<U{longest}")
