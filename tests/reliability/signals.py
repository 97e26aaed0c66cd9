"""Training processes that get Ctrl-C or SIGTERM at any moment, and are resumed: they end as if nothing had happened."""

import random
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from rohydr_fast.errors import EXIT_SIGINT, EXIT_SIGTERM
from rohydr_fast.training.run_directory import CONFIG

from .runs import COMMAND, ENVIRONMENT, assert_same, results, small_run, train_here

CODES = {signal.SIGINT: EXIT_SIGINT, signal.SIGTERM: EXIT_SIGTERM}
DOUBLE_SHARE = 0.25
"""Of the processes that get a second signal, of either kind, soon after the first."""
BEGIN, END = "env.json", "timing.jsonl"
"""What a run writes just before it trains, and when it has been evaluated."""
EARLY = 4
"""One of so many processes gets its signal while it starts, most of which is importing torch."""
IGNORED = re.compile(r"Exception ignored in.*?KeyboardInterrupt[^\n]*\n", re.DOTALL)
"""Python loses Ctrl-C where it comes in the clean-up of an import; a second one helps."""
GO_ON = re.compile(r"python -m rohydr_fast\.train (--resume \S+)")


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` processes; signals and moments are drawn from `seed`."""
    counts = {"signals": 0, "second signals": 0, "before a checkpoint": 0, "with the printed command": 0, "finished": 0}
    counts["lost by Python"] = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = small_run(folder)
        started = time.time()
        process = subprocess.run(_command(options, folder / "whole"), env=ENVIRONMENT, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        expected = results(folder / "whole")
        begin, end = ((folder / "whole" / name).stat().st_mtime for name in (BEGIN, END))
        for number in range(count):
            generator = random.Random(seed << 32 | number)
            out = folder / f"run{number}"
            numbers = [generator.choice(list(CODES))]
            early = number % EARLY == 0
            waits = [generator.uniform(0, begin - started if early else end - begin)]
            if generator.random() < DOUBLE_SHARE:
                numbers.append(generator.choice(list(CODES)))
                waits.append(generator.uniform(0, 0.1))
            said = ", ".join(f"{n.name} after {wait:.3f} s" for n, wait in zip(numbers, waits, strict=True))
            where = f"process {number} of seed {seed}, {said} of {'starting' if early else 'training'}"
            code, errors = _signalled(_command(options, out), None if early else out / BEGIN, numbers, waits)
            _check_end(code, errors, numbers, where)
            counts["signals"] += 1
            counts["second signals"] += len(numbers) == 2
            counts["before a checkpoint"] += not (out / "checkpoints" / "last").exists()
            counts["with the printed command"] += bool(GO_ON.search(errors))
            counts["finished"] += code == 0
            counts["lost by Python"] += bool(IGNORED.search(errors))
            _go_on(options, out, errors, where)
            assert_same(results(out), expected, where)
    return counts


def _command(options: list[str], out: Path) -> list[str]:
    return [*COMMAND, *options, "--out", str(out)]


def _signalled(
    command: list[str], begin: Path | None, numbers: list[signal.Signals], waits: list[float]
) -> tuple[int, str]:
    """Exit code and stderr of a process that gets each signal so many seconds after the one before.

    The first one counts from when the file `begin` is there.
    """
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while begin is not None and not begin.exists() and process.poll() is None:
        time.sleep(0.002)
    for number, wait in zip(numbers, waits, strict=True):
        time.sleep(wait)
        process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def _check_end(code: int, errors: str, numbers: list[signal.Signals], where: str) -> None:
    """The exit code is that of a signal that came, or 0.

    Python's own handlers end a process that is still starting, with a traceback for Ctrl-C; a shell sees the same code.
    """
    by_system = code < 0
    code = 128 - code if by_system else code
    errors = IGNORED.sub("", errors)
    assert code in {0, *(CODES[number] for number in numbers)}, f"{where}: exit code {code}\n{errors}"
    assert by_system or "Traceback" not in errors, f"{where}: {errors}"
    if code and not by_system:
        assert errors.count("error: ") == 1, f"{where}: {errors}"


def _go_on(options: list[str], out: Path, errors: str, where: str) -> None:
    """Resume as the process said, or as its directory allows, or start it again where there is nothing to resume."""
    told = GO_ON.search(errors)
    if told:
        assert told[1] == f"--resume {out}", f"{where}: {errors}"
    again = ["--resume", str(out)] if (out / CONFIG).exists() else [*options, "--out", str(out)]
    code, errors = train_here(*again)
    assert code == 0, f"{where}: going on gave {code}, {errors}"
