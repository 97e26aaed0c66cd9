"""What all command lines share: one parser, and errors as one sentence with an exit code."""

import json
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from .errors import EXIT_IO, EXIT_SIGINT, EXIT_SIGPIPE, EXIT_USAGE, RohydrError, UsageError


class Parser(ArgumentParser):
    """jsonargparse's parser, whose usage errors are `UsageError`s: one sentence, exit code 2."""

    def error(self, message, exception=None):
        raise UsageError(f"{' '.join(str(message).split())}. See: python -m {self.prog} --help")


def make_parser(prog: str, description: str) -> Parser:
    """A parser for ``python -m <prog>`` with the options that every command has."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(parser: Parser, command: Callable[[Namespace], int | None], argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, call `command`, and turn every error into one line on stderr and its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = command(parser.parse_args(argv)) or 0
        if sys.stdout is not None:  # as it is where it was closed
            sys.stdout.flush()
        return code
    except SystemExit as stop:  # --help, --print_config
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    except (RohydrError, OSError, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return EXIT_SIGPIPE
        if "--debug" in argv:
            traceback.print_exception(error)
        code, message = _code_and_sentence(error)
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        return code


def _nobody_reads() -> bool:
    """Whether who read our output, such as `head`, has enough: no error. Then what is left of it goes nowhere."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # no file
        return False
    output = select.poll()
    output.register(descriptor, 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def _code_and_sentence(error: BaseException) -> tuple[int, str]:
    if isinstance(error, RohydrError):
        return error.exit_code, str(error)
    if isinstance(error, OSError):
        return EXIT_IO, _file_sentence(error)
    return getattr(error, "exit_code", EXIT_SIGINT), "interrupted."


def add_output(parser: Parser, what: str) -> None:
    """The options --out and --overwrite, see `new_file`."""
    parser.add_argument("--out", type=str, required=True, help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def new_file(options: Namespace, *suffixes: str) -> Path:
    """The file that --out names.

    Raises:
        UsageError: its name ends in none of `suffixes`, or it exists and --overwrite was not given.
    """
    out = Path(options.out)
    if out.suffix not in suffixes:
        raise UsageError(f"--out: must end in {' or '.join(suffixes)}, got {out.name!r}. Rename it.")
    if out.exists() and not options.overwrite:
        raise UsageError(f"--out: must be a new file, got {out}, which exists. Use another name, or --overwrite.")
    return out


def print_json(document: dict) -> None:
    """Print one JSON object on one line: the last line of every ``--json`` output."""
    print(json.dumps(document, sort_keys=True, allow_nan=False), flush=True)


def _file_sentence(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}. Check the path, its permissions and the free space."
