"""Checkpoints that survive a crash and notice a flipped bit: safetensors, strict JSON and a manifest, never pickle.

    last/           model.safetensors  optimizer.safetensors  state.json  manifest.json
    last.previous/  the checkpoint before

A new checkpoint is written in full beside the old one, then two renames put it in place. Between the two renames only
`last.previous` exists, and loading uses it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from ..errors import DataError, FileAccessError, UsageError
from .run_directory import fsync_directory, strict_json, write_synced

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
MANIFEST_LIMIT = 1 << 20

Tensors = dict[str, dict[str, torch.Tensor]]


def save_checkpoint(directory: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping) -> None:
    """Write a checkpoint so that a crash at any moment leaves the old or the new one readable.

    The checkpoint that `directory` held before becomes ``{directory}.previous``.

    Args:
        tensors: group (model, optimizer, ..) -> name -> tensor; one safetensors file per group.
        state: everything else, as strict JSON.

    Raises:
        UsageError: a group name that is no file name, or a state that JSON cannot hold.
        OSError: full disk, no permission; the old checkpoint is intact and nothing else is left behind.
    """
    directory = Path(directory)
    files = {f"{_checked_group(group)}.safetensors": _tensor_bytes(named) for group, named in tensors.items()}
    files[STATE] = (strict_json(state, "checkpoint state", indent=1) + "\n").encode()
    files[MANIFEST] = _manifest_bytes({name: describe(content) for name, content in files.items()})
    temporary = directory.with_name(f".{directory.name}.tmp")
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        if temporary.exists():  # of a process that was killed
            shutil.rmtree(temporary)
        temporary.mkdir()
        for name, content in files.items():
            write_synced(temporary / name, content)
        fsync_directory(temporary)
        _put_in_place(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_checkpoint(directory: Path) -> tuple[Tensors, dict]:
    """Read a checkpoint; every byte is checked against the manifest before anything is parsed.

    If `directory` is absent, its ``.previous`` is read and a warning is logged. A damaged checkpoint is never replaced
    by an older one silently.

    Returns:
        group -> name -> tensor on the CPU, and the state.

    Raises:
        FileAccessError: there is no checkpoint.
        DataError: a file is missing, superfluous, of the wrong size, damaged or unreadable; the message names it.
    """
    path, note = resolve_checkpoint(directory)
    if note:
        logging.getLogger(__name__).warning(note)
    contents = _verified_contents(path)
    tensors = {}
    for name, content in contents.items():
        if name != STATE:
            tensors[name.removesuffix(".safetensors")] = parse_tensors(content, path / name)
    try:
        state = json.loads(contents[STATE])
    except (ValueError, RecursionError) as error:
        raise _damaged(path / STATE, "hold JSON", str(error)) from None
    if not isinstance(state, dict):
        raise _damaged(path / STATE, "hold a JSON object", type(state).__name__)
    return tensors, state


def parse_tensors(content: bytes, path: Path) -> dict[str, torch.Tensor]:
    """name -> tensor of a safetensors file, which holds numbers alone and nothing to execute.

    Raises:
        DataError: `content`, read from `path`, is something else.
    """
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, "hold safetensors", str(error)) from None


def resolve_checkpoint(directory: Path) -> tuple[Path, str | None]:
    """Where `load_checkpoint` reads: `directory`, or the one before and a sentence that says so.

    Raises:
        FileAccessError: neither exists.
    """
    directory = Path(directory)
    if directory.exists():
        return directory, None
    previous = _previous(directory)
    if not previous.exists():
        raise FileAccessError(
            f"{directory}: must be the directory of a checkpoint, got no such directory. "
            "Check the path, or train first."
        )
    return previous, f"{directory} is absent (writing it was interrupted): using the one before, {previous}."


def set_aside(directory: Path) -> None:
    """Keep a damaged checkpoint as ``{directory}.damaged``, out of the way of the next one."""
    place = directory.with_name(f"{directory.name}.damaged")
    if place.exists():
        shutil.rmtree(place)
    os.rename(directory, place)
    fsync_directory(directory.parent)


def check_shapes(expected: Mapping, found: Mapping, what: str) -> None:
    """Compare names and shapes; both map names to shapes or tensors.

    Raises:
        DataError: names the first tensor that is missing, of another shape, or not expected.
    """
    remedy = "Use the configuration with which the checkpoint was written."
    for name, value in expected.items():
        shape = _shape(value)
        if name not in found:
            raise DataError(f"{what}: {name} must have the shape {shape}, got no such tensor. {remedy}")
        if _shape(found[name]) != shape:
            raise DataError(f"{what}: {name} must have the shape {shape}, got {_shape(found[name])}. {remedy}")
    for name in found:
        if name not in expected:
            raise DataError(f"{what}: {name} must not be there, got shape {_shape(found[name])}. {remedy}")


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[str, torch.nn.Parameter]
) -> tuple[dict[str, torch.Tensor], dict]:
    """An optimizer's state as named tensors and JSON; `restore_optimizer` is the exact inverse.

    Tensors are named ``{parameter}.{key}``, for example ``encoder.weight.exp_avg`` and ``encoder.weight.step``.

    Args:
        names: name -> parameter, for all parameters of the optimizer.

    Raises:
        UsageError: a parameter without a name, or a hyper-parameter that JSON cannot hold.
    """
    name_of = {id(parameter): name for name, parameter in names.items()}
    tensors, numbers, groups = {}, {}, []
    for group in optimizer.param_groups:
        unnamed = [tuple(parameter.shape) for parameter in group["params"] if id(parameter) not in name_of]
        if unnamed:
            raise UsageError(
                f"flatten_optimizer: names must contain every parameter of the optimizer, got none for one of shape "
                f"{unnamed[0]}. Pass dict(model.named_parameters())."
            )
        members = [name_of[id(parameter)] for parameter in group["params"]]
        groups.append({**{key: value for key, value in group.items() if key != "params"}, "params": members})
        for name, parameter in zip(members, group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if torch.is_tensor(value):
                    tensors[f"{name}.{key}"] = value.detach().clone()
                else:
                    numbers.setdefault(name, {})[key] = value
    state = {"kind": type(optimizer).__name__, "groups": groups, "numbers": numbers}
    return tensors, json.loads(strict_json(state, "flatten_optimizer"))


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    state: Mapping,
) -> None:
    """Put back what `flatten_optimizer` returned, bit for bit, hyper-parameters and step counters included.

    Args:
        optimizer: of the same kind, over the same parameters in the same groups.
        names: name -> parameter, as for `flatten_optimizer`.

    Raises:
        DataError: another kind, other groups, or tensors of another name, shape or dtype.
    """
    _, now = flatten_optimizer(optimizer, names)
    _check_groups(now, state)
    entries: dict[str, dict] = {name: dict(values) for name, values in state.get("numbers", {}).items()}
    for key in tensors:
        entries.setdefault(key.rpartition(".")[0], {})[key.rpartition(".")[2]] = tensors[key].clone()
    _check_state_tensors(entries, names, tensors)
    packed = optimizer.state_dict()
    members = [name for group in state["groups"] for name in group["params"]]
    indices = [index for group in packed["param_groups"] for index in group["params"]]
    optimizer.load_state_dict(
        {
            "state": {i: entries[name] for i, name in zip(indices, members, strict=True) if name in entries},
            "param_groups": [
                {**old, **_typed_like(old, new), "params": old["params"]}
                for old, new in zip(packed["param_groups"], state["groups"], strict=True)
            ],
        }
    )


def _check_state_tensors(entries: Mapping[str, Mapping], names: Mapping, tensors: Mapping[str, torch.Tensor]) -> None:
    keys = dict.fromkeys(key.rpartition(".")[2] for key in tensors)
    known = [name for name in entries if name in names]
    expected = {f"{n}.{k}": () if k == "step" else names[n].shape for n in known for k in keys}
    check_shapes(expected, tensors, "optimizer state")
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        if kind != "step" and tensor.dtype != names[name].dtype:
            raise DataError(
                f"optimizer state: {key} must have the dtype {names[name].dtype}, got {tensor.dtype}. "
                "Use the precision with which the checkpoint was written."
            )


def _typed_like(old: Mapping, new: Mapping) -> dict:
    """JSON has no tuples: give them back where the optimizer has them (betas)."""
    return {key: tuple(value) if isinstance(old.get(key), tuple) else value for key, value in new.items()}


def _check_groups(now: Mapping, state: Mapping) -> None:
    remedy = "Use the configuration with which the checkpoint was written."
    if state.get("kind") != now["kind"]:
        raise DataError(f"optimizer state: kind must be {now['kind']}, got {state.get('kind')}. {remedy}")
    here, there = ([group["params"] for group in groups] for groups in (now["groups"], state["groups"]))
    if len(here) != len(there):
        raise DataError(f"optimizer state: must have {len(here)} parameter groups, got {len(there)}. {remedy}")
    for number, (expected, found) in enumerate(zip(here, there, strict=True)):
        for place, (old, new) in enumerate(zip_longest(expected, found)):
            if old != new:
                raise DataError(
                    f"optimizer state: parameter {place} of group {number} must be {old}, got {new}. {remedy}"
                )


def _put_in_place(temporary: Path, directory: Path) -> None:
    previous = _previous(directory)
    if directory.exists():
        if previous.exists():
            shutil.rmtree(previous)
        os.rename(directory, previous)
    try:
        os.rename(temporary, directory)
    except BaseException:
        if not directory.exists() and previous.exists():
            with suppress(OSError):
                os.rename(previous, directory)
        raise
    fsync_directory(directory.parent)


def _previous(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.previous")


def _checked_group(group: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", group):
        raise UsageError(f"save_checkpoint: group must be lower-case letters, digits and _, got {group!r}. Rename it.")
    return group


def _tensor_bytes(named: Mapping[str, torch.Tensor]) -> bytes:
    # Cloned, since safetensors refuses tensors that share memory or are not contiguous.
    return safetensors.torch.save(
        {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in named.items()}
    )


def describe(content: bytes) -> dict:
    """SHA-256 and size, by which a file is known again."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def _manifest_bytes(files: Mapping[str, Mapping]) -> bytes:
    return (json.dumps({"files": files, "format": FORMAT}, sort_keys=True, indent=1) + "\n").encode()


def _read_manifest(path: Path) -> dict[str, dict]:
    try:
        with open(path, "rb") as file:
            content = file.read(MANIFEST_LIMIT)
        document = json.loads(content)
        files, version = document["files"], document["format"]
        canonical = _manifest_bytes(files)
        entries = all(
            set(entry) == {"sha256", "size"} and isinstance(entry["size"], int) for entry in dict(files).values()
        )
    except FileNotFoundError:
        raise _damaged(path, "exist", "no such file") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _damaged(path, "hold the list of the checkpoint's files", "something else") from None
    if version != FORMAT:
        raise _damaged(path, f"have the format {FORMAT}", repr(version))
    if canonical != content or not entries or STATE not in files:
        raise _damaged(path, "be as it was written", "a change")
    return files


def _verified_contents(directory: Path) -> dict[str, bytes]:
    if not directory.is_dir():
        raise _damaged(directory, "be a directory", "a file")
    files = _read_manifest(directory / MANIFEST)
    found = set(os.listdir(directory)) - {MANIFEST}
    for name in sorted(set(files) ^ found):
        rule, value = ("be in the checkpoint", "no such file") if name in files else ("not be there", "an extra file")
        raise _damaged(directory / name, f"{rule} (by {MANIFEST})", value)
    contents = {}
    for name, entry in files.items():
        path = directory / name
        if not path.is_file():
            raise _damaged(path, "be a regular file", "something else")
        size = path.stat().st_size
        if size != entry["size"]:
            raise _damaged(path, f"have {entry['size']} bytes", f"{size}")
        contents[name] = path.read_bytes()
        digest = describe(contents[name])["sha256"]
        if digest != entry["sha256"]:
            raise _damaged(path, f"have the SHA-256 that begins with {entry['sha256'][:12]}", digest[:12])
    return contents


def _damaged(path: Path, rule: str, value: str) -> DataError:
    directory = path.parent
    previous = _previous(directory)
    remedy = "Restore it from a copy, or start a new run."
    if previous.is_dir():
        remedy = f"Delete {directory} to continue from {previous}, or use --resume auto, which sets it aside."
    return DataError(f"{path}: must {rule}, got {value}. The checkpoint is damaged. {remedy}")


def _shape(value) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", value))
