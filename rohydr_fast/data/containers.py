"""The three containers of a data set: pickle, .npz and .safetensors; open them as nested arrays, and save them.

In .npz and .safetensors the keys are ``train/audio`` and so on. Reading gives views of the file: numbers stay where
they are until they are used, except in compressed .npz members.
"""

import contextlib
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError, FileAccessError, UsageError, naming
from . import columns, npz, safe_pickle, tensorfile
from .mapping import FileData, open_file

Flat = dict[str, np.ndarray]
SUFFIXES = (".pkl", ".pickle", ".npz", ".safetensors")


def check_suffix(path: str) -> str:
    """The suffix of a data file's name.

    Raises:
        DataError: no container has this suffix.
        FileAccessError: nor does such a file exist, or it is a directory.
    """
    suffix = Path(path).suffix.lower()
    if suffix in SUFFIXES:
        return suffix
    if Path(path).is_dir():
        raise FileAccessError(f"{path}: must be a data file, got a directory. Name a file in it.")
    got = repr(suffix) if suffix else "no suffix"
    rule = f"a data file's name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, got {got}"
    remedy = "Rename it, or use the word synthetic for generated data."
    error = DataError if Path(path).exists() else FileAccessError
    raise error(f"{path}: {rule}. {remedy}")


def read(path: str) -> tuple[Any, FileData]:
    """Open a data file by its suffix.

    Returns:
        The nested dicts of the file (split -> key -> array or list; a pickle may hold anything plain), and the open
        file.

    Raises:
        DataError: the file is damaged, is something else, or its suffix is unknown.
        FileAccessError: it cannot be read.
    """
    suffix = check_suffix(path)
    data = open_file(path)
    if suffix == ".npz":
        return _nested(npz.read(data), path), data
    if suffix == ".safetensors":
        return _nested(tensorfile.read(data), path), data
    return safe_pickle.read(data), data


def write(tree: dict[str, dict[str, Any]], path: str, *, overwrite: bool = False) -> list[str]:
    """Save nested arrays in the container that the suffix names.

    The file appears whole or not at all: it is written beside its place, flushed to the disk and renamed.

    Args:
        tree: split -> key -> array or list.
        path: the new file.
        overwrite: replace an existing file.

    Returns:
        The keys that this container cannot hold (neither numbers nor texts) and that were left out.

    Raises:
        UsageError: the file exists, or its suffix is unknown.
        DataError: texts of very different lengths do not fit into .npz.
    """
    suffix = check_output(path, overwrite=overwrite)
    if suffix in (".pkl", ".pickle"):
        with replacing(path) as file:
            pickle.dump(tree, file, protocol=4)
        return []
    flat, left_out = _flat(tree)
    with replacing(path) as file:
        (npz if suffix == ".npz" else tensorfile).write(file, flat, path)
    return left_out


def check_output(path: str, *, overwrite: bool = False) -> str:
    """The suffix of a file that may be written.

    Raises:
        UsageError: the suffix names no container, or the file exists and must not be replaced.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{path}: the output's name must end in .pkl, .npz or .safetensors. Rename it.")
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{path}: the output must not exist yet. Choose another name or add --overwrite.")
    return suffix


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A file to write; it takes the name `path` when the block ends without error, and vanishes otherwise."""
    folder, name = os.path.split(os.path.abspath(path))
    try:
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".part")
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with naming(path, instead_of=temporary):
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _nested(flat: Flat, path: str) -> dict[str, dict[str, np.ndarray]]:
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, array in flat.items():
        split, separator, key = name.partition("/")
        if not separator or not key or "/" in key:
            raise DataError(
                f"{path}: keys must look like train/audio, got {columns.shown(name)}. Save with split/key names."
            )
        tree.setdefault(split, {})[key] = array
    return tree


def _flat(tree: dict[str, dict[str, Any]]) -> tuple[Flat, list[str]]:
    flat, left_out = {}, []
    for split, values in tree.items():
        for key, value in values.items():
            array = _as_array(value)
            if array is None or "/" in key or "/" in split:
                left_out.append(f"{split}/{key}")
            else:
                flat[f"{split}/{key}"] = array
    return flat, left_out


def _as_array(value: Any) -> np.ndarray | None:
    """A number array, an array of str or bytes, or an object array of str; None for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return value
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    if isinstance(value, np.ndarray) and value.ndim != 1:
        return None
    if len(value) and all(isinstance(item, str) for item in value):
        array = np.empty(len(value), object)
        array[:] = value
        return array
    try:
        return columns.numbers_as_written(value)
    except (TypeError, ValueError, OverflowError):
        return None
