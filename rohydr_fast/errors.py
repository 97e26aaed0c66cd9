"""Errors for people: one sentence that says what was wrong, what was expected and what to do.

Every error that a user can cause derives from `RohydrError` and carries the exit code that the
command lines return for it (the BSD `sysexits` numbers where one fits).
"""

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_DATA = 65
EXIT_UNAVAILABLE = 69
EXIT_IO = 74
EXIT_BUSY = 75
EXIT_SIGINT = 130
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
