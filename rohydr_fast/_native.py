"""Loads the native core `rohydr_fast._C` when it is first needed, and remembers why it could not be loaded."""

import json
import struct
from functools import cache
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

from . import __version__
from .errors import BackendUnavailable

INTERFACE = 7
"""Number of the agreement between Python and `_C`: raised together with kInterface in csrc/bindings/module.cpp."""

REBUILD = "Run: pip install -e . in the checkout, or reinstall the package"


def load() -> ModuleType:
    """The module `rohydr_fast._C`.

    Raises:
        BackendUnavailable: it is missing, damaged, foreign or of another version; the message says which.
    """
    module, reason = _attempt()
    if module is None:
        raise BackendUnavailable(reason)
    return module


def status() -> tuple[bool, str]:
    """Whether `_C` can be used, and the reason as a sentence."""
    module, reason = _attempt()
    return module is not None, reason


def build_info() -> dict:
    """What the build recorded in build_info.json; empty when the package was never built."""
    try:
        return json.loads((_folder() / "build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _folder() -> Path:
    return Path(__file__).parent


@cache
def _attempt() -> tuple[ModuleType | None, str]:
    usable = [path for path in (_folder() / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES) if path.exists()]
    if not usable:
        return None, f"rohydr_fast._C: {_why_absent()}."
    damage = _damage(usable[0])
    if damage:
        return None, f"rohydr_fast._C: {usable[0]} {damage}. {REBUILD}."
    try:
        module = import_module("rohydr_fast._C")
    except ImportError as error:  # the loader's own words: wrong system, missing library, other Python
        return None, f"rohydr_fast._C: {usable[0]} cannot be loaded here ({error}). {REBUILD}."
    info = getattr(module, "build_info", dict)()
    built = (info.get("version"), info.get("interface"))
    if built != (__version__, INTERFACE):
        return None, (
            f"rohydr_fast._C: it was built from version {built[0]}, interface {built[1]}, but this package is "
            f"version {__version__}, interface {INTERFACE}. {REBUILD}."
        )
    return module, f"the native core is loaded ({info['compiler']})"


def _why_absent() -> str:
    if build_info().get("requested") == "none":
        return "this install was made with ROHYDR_FAST_BUILD=none. Unset it and reinstall to get the native core"
    others = sorted(path.name for path in _folder().glob("_C.*.so"))
    if others:
        return f"it was built for another Python ({others[0]}), not for this one ({EXTENSION_SUFFIXES[0]}). {REBUILD}"
    return f"the native core is not built. {REBUILD}"


def _damage(path: Path) -> str | None:
    """What is wrong with a 64-bit ELF file that has lost its end: loading one kills the process, so ask before."""
    if path.suffix != ".so":
        return None
    try:
        with path.open("rb") as file:
            content = file.read(64)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if content[:4] != b"\x7fELF" or len(content) < 64:
        return None if content[:4] in (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe") else "is not a shared library"
    order = "<" if content[5] == 1 else ">"
    (offset,) = struct.unpack_from(f"{order}Q", content, 0x28)  # e_shoff: the section table is the last part
    size, number = struct.unpack_from(f"{order}HH", content, 0x3A)
    if content[4] == 2 and offset + size * number > path.stat().st_size:
        return "is truncated"
    return None
