"""What a pickle may hold: values compared and recognised as plain data, and pickles with the names of numpy 1."""

from typing import Any

import numpy as np

PLAIN = (dict, list, tuple, str, bytes, int, float, bool, type(None), np.ndarray, np.generic)


def same(one: Any, two: Any) -> bool:
    """Equal in values and types; numpy swaps bytes of some big-endian arrays when it unpickles them, we do not."""
    if isinstance(one, np.ndarray | np.generic):
        types = type(one) is type(two) and one.dtype.newbyteorder("=") == two.dtype.newbyteorder("=")
        return types and one.shape == two.shape and np.array_equal(one, two)
    if isinstance(one, dict):
        return type(two) is dict and list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


def is_plain(value: Any) -> bool:
    """Dicts with text keys, lists, tuples, text, numbers and arrays of them, and nothing else at any depth."""
    if isinstance(value, dict):
        return all(type(key) is str for key in value) and all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, np.ndarray) and value.dtype == object:
        return all(map(is_plain, value.reshape(-1).tolist()))
    return isinstance(value, PLAIN)


def with_names_of_numpy_1(data: bytes) -> bytes:
    """A pickle that numpy 2 wrote, as numpy 1 would have written it."""
    for module in (b"multiarray", b"numeric"):
        old, new = b"numpy.core." + module, b"numpy._core." + module
        data = data.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old).replace(new, old)
    return data
