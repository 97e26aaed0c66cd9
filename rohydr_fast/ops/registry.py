"""Which backend runs an operation, and why.

The choice is made before the call, from predicates that give a reason: no failure is ever caught to try the next one.
Precedence: the argument of the call, the context manager `backend`, the variable ROHYDR_FAST_BACKEND, automatic.
`register_backend` adds a backend of one's own: docs/backends.md.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ..errors import BackendUnavailable, RohydrError, UsageError
from . import support
from .support import Verdict

BACKENDS = ("reference", "cpp", "triton", "cuda")
"""Those of this package."""
OPS = ("philox", "conditioning", "cross_attention", "denoiser_block", "denoiser", "diffusion_loss", "reverse_loop")
VARIABLE = "ROHYDR_FAST_BACKEND"

_context: ContextVar[str | None] = ContextVar("rohydr_fast_backend", default=None)


@dataclass(frozen=True)
class Record:
    """One implementation of one operation."""

    op: str
    backend: str
    usable: Callable[..., Verdict]
    """Called with the facts of a call or with none, see `support`; returns (usable, reason as a sentence)."""
    function: Callable | None = None
    """What a backend that was registered runs in the place of the reference."""
    automatic: bool = False
    """Whether the automatic choice takes a registered one, before those of this package."""

    def verdict(self, **call) -> Verdict:
        """`usable`, with a wrong setting of the environment as the reason of a refusal."""
        try:
            return self.usable(**call)
        except UsageError as error:
            return False, str(error)


@dataclass(frozen=True)
class Explanation:
    """The verdict on every backend of an operation, and what a call without `backend=` would take now."""

    op: str
    rows: tuple[tuple[str, bool, str], ...]
    selected: str | None
    how: str

    def __iter__(self) -> Iterator[tuple[str, bool, str]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        width = max(9, *[len(name) for name, _, _ in self.rows])
        lines = [f"{self.op}: {self.how}"]
        lines += [f"  {name:<{width}} {'yes' if usable else 'no':<5}{reason}" for name, usable, reason in self.rows]
        return "\n".join(lines)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Name the backend of every call inside the ``with`` block; "auto" makes the choice automatic there.

    The setting belongs to the current thread or task (contextvars) and is undone at the end, also by an exception.
    An operation that the backend does not serve raises `BackendUnavailable`, except "philox", see `select`.

    Raises:
        UsageError: no such backend.
    """
    _check_backend(name, "backend")
    token = _context.set(name)
    try:
        yield
    finally:
        _context.reset(token)


def register_backend(
    op: str, name: str, function: Callable, *, usable: Callable[..., Verdict], automatic: bool = False
) -> None:
    """Add a backend to an operation, in this process: it is then named, explained and refused like the others.

    Args:
        op: one of `OPS` but "philox", whose integers are the same everywhere.
        name: a new one, or one that is registered for other operations.
        function: takes the arguments of the operation's reference and gives its result, see docs/backends.md. The
            arguments are checked, weights have the dtype of the rest, and autocast is off.
        usable: takes facts of a call as keywords, each of which may be absent, and returns whether the function can run
            it, with the reason as a sentence; see `support`.
        automatic: whether a call that names no backend takes it where it is usable, before those of this package.

    Raises:
        UsageError: an operation or name that cannot be, or a `usable` that does not answer so.
    """
    _check_op(op)
    if op == "philox":
        raise UsageError("register_backend: op must not be 'philox', whose integers are fixed. Register another one.")
    if not name.isidentifier() or name in (*BACKENDS, "auto"):
        taken = ", ".join((*BACKENDS, "auto"))
        raise UsageError(f"register_backend: name must be an identifier other than {taken}, got {name!r}. Change it.")
    if (op, name) in _RECORDS:
        raise UsageError(f"register_backend: {name!r} must be new for {op}. Call unregister_backend before.")
    record = Record(op, name, usable, function, automatic)
    verdict = record.verdict()
    kinds = [type(part) for part in verdict] if isinstance(verdict, tuple) else []
    if kinds != [bool, str] or not verdict[1]:
        raise UsageError(
            f"register_backend: usable must return whether it is and the reason as text, got {verdict!r}. Correct it."
        )
    _RECORDS[op, name] = record
    _names.cache_clear()


def unregister_backend(op: str, name: str) -> None:
    """Take back what `register_backend` added.

    Raises:
        UsageError: nothing of this name was registered for the operation.
    """
    _check_op(op)
    if name in BACKENDS or (op, name) not in _RECORDS:
        added = ", ".join(_names(op)[len(BACKENDS) :]) or "none"
        raise UsageError(f"unregister_backend: name must be registered for {op}, got {name!r}. Registered: {added}.")
    del _RECORDS[op, name]
    _names.cache_clear()


def registered(op: str, name: str) -> Callable:
    """The function of a backend that `select` gave and that is none of this package's."""
    return _RECORDS[op, name].function


def select(op: str, backend: str | None = "auto", **call) -> str:
    """The name of the backend that runs `op`.

    Args:
        op: one of `OPS`.
        backend: a name, which must be usable; "auto" or None leave the choice to the context manager, then to
            ROHYDR_FAST_BACKEND, then to the first usable one of the order of preference: what was registered as
            automatic; on a CUDA device cuda, triton; on the CPU cpp; reference.
        call: facts of the call, handed to the predicates: `device` ("cpu" by default) is the type of its tensors,
            `dtype` theirs, `needs_grad` whether a gradient is wanted; see `support`, which lists all. The more facts,
            the surer the answer: without any it says what the best call could take.

    "philox" is infrastructure: it gives the same integers on every backend, and every other operation needs it. So a
    backend named by the context manager or the variable that cannot serve it stands for the best usable one there;
    named as an argument it must be usable.

    Raises:
        UsageError: no such operation or backend, or ROHYDR_FAST_CPU names an instruction set that is not usable.
        BackendUnavailable: the named backend cannot run; the message holds the reason and the usable ones.
    """
    _check_op(op)
    name, source = _named(backend)
    if name == "auto":
        return _best(op, call)
    usable, reason = _record(op, name).usable(**call)
    if usable:
        return name
    if op == "philox" and source != "argument":
        return _best(op, call)
    others = ", ".join(repr(other) for other in _names(op) if _record(op, other).verdict(**call)[0])
    raise BackendUnavailable(
        f"{op}: {_SOURCES[source]} must be usable, got {name!r}, which is not: {reason.rstrip('.')}. "
        f"Usable: {others}, or 'auto'."
    )


def explain(op: str, *tensors) -> Explanation:
    """What can run `op` on this machine, and why: iterate over (backend, usable, reason), or print it.

    Args:
        op: one of `OPS`.
        tensors: of a call that is meant: their device and dtype, and whether one of them wants a gradient, count.

    Raises:
        UsageError: no such operation, or tensors on several devices.
    """
    _check_op(op)
    call = _facts(tensors)
    rows = tuple((name, *_record(op, name).verdict(**call)) for name in _names(op))
    try:
        name, source = _named(None)
        selected = select(op, None, **call)
    except RohydrError as error:
        return Explanation(op, rows, None, f"a call now raises: {error}")
    how = "automatic" if name == "auto" else f"{_SOURCES[source]} is {name!r}"
    return Explanation(op, rows, selected, f"a call now takes {selected!r} ({how})")


def _facts(tensors: tuple) -> dict:
    """What `select` can be told of a call with these tensors; nothing without any."""
    if not tensors:
        return {}
    import torch

    others = [type(value).__name__ for value in tensors if not isinstance(value, torch.Tensor)]
    if others:
        raise UsageError(f"explain: must be given tensors after the operation, got {others[0]}. Leave it out.")
    devices = sorted({value.device.type for value in tensors})
    if len(devices) > 1:
        raise UsageError(f"explain: tensors must lie on one device, got {' and '.join(devices)}. Move them to one.")
    kinds = [value.dtype for value in tensors if value.is_floating_point()]
    dtype = {"dtype": functools.reduce(torch.promote_types, kinds)} if kinds else {}
    wanted = torch.is_grad_enabled() and any(value.requires_grad for value in tensors)
    return {"device": devices[0], "needs_grad": wanted, **dtype}


_SOURCES = {"argument": "backend", "context": "the backend of the context manager", "environment": VARIABLE}


def _named(argument: str | None) -> tuple[str, str]:
    """The name in force and where it comes from."""
    if argument not in (None, "auto"):
        return _check_backend(argument, "backend"), "argument"
    if _context.get() is not None:
        return _context.get(), "context"
    return _check_backend(os.environ.get(VARIABLE) or "auto", VARIABLE), "environment"


@functools.cache  # at every call of an operation; whoever changes the records clears it
def _names(op: str | None = None) -> tuple[str, ...]:
    """The backends of an operation, or of any: those of this package first."""
    return tuple(dict.fromkeys(name for of, name in _RECORDS if op in (None, of)))


def _record(op: str, name: str) -> Record:
    """Of a backend that was registered for other operations, or is no more, one that says so."""
    record = _RECORDS.get((op, name))
    if record is not None:
        return record
    others = ", ".join(of for of, other in _RECORDS if other == name)
    reason = f"it is registered for {others} alone" if others else "it is not registered any more"
    return Record(op, name, lambda **call: (False, reason))


def _check_backend(name: str, what: str) -> str:
    if name not in (*_names(), "auto"):
        raise UsageError(f"{what}: must be one of {', '.join(_names())} or auto, got {name!r}. Choose one of these.")
    return name


def _check_op(op: str) -> None:
    if op not in OPS:
        raise UsageError(f"op: must be one of {', '.join(OPS)}, got {op!r}. Choose one of these.")


def _best(op: str, call: dict) -> str:
    order = ("cuda", "triton", "cpp", "reference")
    if call.get("device", "cpu") == "cpu":
        order = ("cpp", "reference")
    added = [name for name in _names(op)[len(BACKENDS) :] if _RECORDS[op, name].automatic]
    return next(name for name in (*added, *order) if _RECORDS[op, name].usable(**call)[0])


_FUSED = {
    "reference": support.reference,
    "cpp": support.native_fused,
    "triton": support.no_triton,
    "cuda": support.no_cuda,
}
_NETWORK = {**_FUSED, "triton": support.triton_fused}
_BACKENDS = {
    "philox": {**_FUSED, "cpp": support.native_core, "cuda": support.philox_cuda},
    "conditioning": {**_FUSED, "triton": support.triton_conditioning},
    "cross_attention": {**_FUSED, "cpp": support.native_attention, "triton": support.triton_attention},
    **dict.fromkeys(("denoiser", "diffusion_loss"), _NETWORK),
    "denoiser_block": {**_NETWORK, "cuda": support.cuda_block},
    "reverse_loop": {**_NETWORK, "cuda": support.cuda_loop},
}
_RECORDS = {(op, name): Record(op, name, _BACKENDS.get(op, _FUSED)[name]) for op in OPS for name in BACKENDS}
