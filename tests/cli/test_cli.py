"""What all command lines share: errors as one line and an exit code."""

import os
import subprocess
import sys

import pytest

from rohydr_fast import cli
from rohydr_fast.errors import BackendUnavailable, DataError, FileAccessError, RunDirectoryBusy, UsageError
from rohydr_fast.modalities import parse_available


def call(command, argv=()):
    parser = cli.make_parser("rohydr_fast.test", "For tests.")
    parser.add_argument("--number", type=int, default=1, help="a number")
    return cli.run(parser, command, list(argv))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong call."), 2),
        (DataError("wrong data."), 65),
        (BackendUnavailable("cannot run."), 69),
        (FileAccessError("cannot read."), 74),
        (PermissionError(13, "Permission denied", "some/file"), 74),
        (RunDirectoryBusy("busy."), 75),
        (BrokenPipeError(32, "Broken pipe"), 74),  # of another pipe than our output
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_is_one_line_and_its_exit_code(capsys, error, code):
    def command(options):
        raise error

    assert call(command) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("rohydr_fast.test: error: ")


def test_debug_adds_the_traceback(capsys):
    def command(options):
        raise DataError("wrong data.")

    assert call(command, ["--debug"]) == 65
    assert "Traceback" in capsys.readouterr().err


def test_options_arrive_and_success_is_0():
    seen = []
    assert call(lambda options: seen.append(options.number), ["--number", "7"]) == 0
    assert seen == [7]


@pytest.mark.parametrize("argv", [["--number", "seven"], ["--nmber", "7"], ["extra"]])
def test_a_wrong_option_is_exit_2_and_names_the_help(capsys, argv):
    assert call(lambda options: None, argv) == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_gone_is_no_error(lines):
    """As with `| head`: whether the output waits in a buffer or is written at once."""
    program = (
        "from rohydr_fast import cli\n"
        f"say = lambda options: print('line\\n' * {lines})\n"
        "raise SystemExit(cli.run(cli.make_parser('rohydr_fast.test', 'x'), say, []))\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_output_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert call(lambda options: print("unheard")) == 0


def test_help_is_exit_0(capsys):
    assert call(lambda options: None, ["--help"]) == 0
    assert "For tests." in capsys.readouterr().out


def test_json_refuses_nan():
    with pytest.raises(ValueError, match="JSON"):
        cli.print_json({"x": float("nan")})


@pytest.mark.parametrize("text", ["t,a", "a,t", "ta", "text,audio", " T , audio "])
def test_available_modalities_in_any_spelling_and_order(text):
    assert parse_available(text) == ("a", "t")


@pytest.mark.parametrize("text", ["", ",", "x", "a,a", "a;t"])
def test_no_unknown_or_repeated_modality(text):
    with pytest.raises(UsageError, match="available"):
        parse_available(text)
