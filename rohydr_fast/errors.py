"""Errors for people: one sentence that says what was wrong, what was expected and what to do.

Every error that a user can cause derives from `RohydrError` and carries the exit code that the
command lines return for it (the BSD `sysexits` numbers where one fits).
"""

import contextlib
from collections.abc import Iterator
from os import PathLike

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_DATA = 65
EXIT_UNAVAILABLE = 69
EXIT_IO = 74
EXIT_BUSY = 75
EXIT_SIGINT = 130
EXIT_SIGPIPE = 141
EXIT_SIGTERM = 143


class RohydrError(Exception):
    """Base of all errors that name a mistake and its remedy."""

    exit_code = 1


class UsageError(RohydrError, ValueError):
    """A call or a command line asks for something impossible."""

    exit_code = EXIT_USAGE


class MethodUnavailable(UsageError):
    """A method of recovery that cannot run on these data."""


class DataError(RohydrError, ValueError):
    """A data file or a checkpoint does not hold what it must."""

    exit_code = EXIT_DATA


class BackendUnavailable(RohydrError, RuntimeError):
    """A named backend cannot run here; the message says why."""

    exit_code = EXIT_UNAVAILABLE


class FileAccessError(RohydrError, OSError):
    """A file cannot be read or written."""

    exit_code = EXIT_IO


class RunDirectoryBusy(RohydrError, RuntimeError):
    """Another process trains in the same run directory."""

    exit_code = EXIT_BUSY


@contextlib.contextmanager
def naming(path: str | PathLike, instead_of: str | PathLike | None = None) -> Iterator[None]:
    """Errors of the system that name no file, or a temporary one, name the file that was meant."""
    try:
        yield
    except OSError as error:
        if error.filename is None or (instead_of is not None and str(error.filename) == str(instead_of)):
            error.filename = str(path)
        raise
