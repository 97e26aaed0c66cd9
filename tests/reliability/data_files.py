"""Hostile, broken and damaged data files, read from the disk: refused or a data set, soon, and nothing executed.

The files are read in a process of its own (python -m tests.reliability.data_files), which an alarm kills.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rohydr_fast.data import containers
from rohydr_fast.data.loading import load
from rohydr_fast.errors import DataError, FileAccessError
from tests.data.hostile import CANARY
from tests.data.hostile_files import SUFFIXES, all_files
from tests.small_data import small_tree

from .audit import audited
from .mutation import mutant

LONGEST, LONGEST_WAIT = 2.0, 20.0
"""Seconds of the processor, and of the clock, that one file may take."""
REFUSALS = (DataError.__name__, FileAccessError.__name__)
ACCEPTED = "data set"
WORDS = [
    *(b"\xff" * 8, b"\0" * 8, b"\0" * 7 + b"\x80", b"\0\0\0\0\x01\0\0\0", b"PK\x01\x02", b"PK\x05\x06"),
    *(b"'|O'", b"'<U9'", b"F64", b"BOOL", b"-1", b"99999999999", b"../", b"[[[[", b"(()", b"/utf8", b"/offsets"),
]


def run(count: int, seed: int) -> dict[str, int | str]:
    """Read every hostile file, then as many damaged ones as make `count`."""
    counts = {"hostile": 0, "damaged": 0, **dict.fromkeys((*REFUSALS, ACCEPTED), 0)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = _originals(folder)
        with _Reader(folder) as reader:
            for original in folder.iterdir():  # imports what a first use needs, too
                assert reader.read(original, "an undamaged file", audit=False) == ACCEPTED
            for kind, path in _hostile(folder):
                outcome = reader.read(path, kind)
                assert outcome in REFUSALS, f"{kind} {path.suffix}: is a {outcome}"
                counts["hostile"] += 1
                counts[outcome] += 1
            assert counts["hostile"] >= 150
            suffixes = list(originals)
            for number in range(count - counts["hostile"]):
                suffix = suffixes[number % len(suffixes)]
                path = folder / f"mutant{suffix}"
                path.write_bytes(mutant(originals[suffix], WORDS, seed, number)[1])
                counts["damaged"] += 1
                counts[reader.read(path, f"mutant {number} of seed {seed}")] += 1
    return counts


def _originals(folder: Path) -> dict[str, list[bytes]]:
    """Valid files by suffix, which are left in `folder`."""
    tree = small_tree(raw_text=np.array(["é", ""] * 5))
    flat = {f"{split}/{key}": value for split, values in tree.items() for key, value in values.items()}
    for suffix in SUFFIXES:
        containers.write(tree, str(folder / f"valid{suffix}"))
    np.savez_compressed(folder / "compressed.npz", **flat)
    return {
        ".npz": [(folder / name).read_bytes() for name in ("valid.npz", "compressed.npz")],
        ".safetensors": [(folder / "valid.safetensors").read_bytes()],
    }


def _hostile(folder: Path) -> Iterator[tuple[str, Path]]:
    """What each hostile file is, and where it lies until the next is asked for."""
    for kind, suffix, content in all_files():
        path = folder / f"hostile{suffix}"
        path.write_bytes(content)
        yield kind, path
    for suffix in SUFFIXES:
        folder.joinpath(f"folder{suffix}").mkdir()
        os.mkfifo(folder / f"pipe{suffix}")
        folder.joinpath(f"device{suffix}").symlink_to("/dev/zero")
        for kind in ("folder", "pipe", "device", "absent"):
            yield kind, folder / f"{kind}{suffix}"


class _Reader:
    """The process that reads files, in a folder where a canary would be found."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> "_Reader":
        root = str(Path(__file__).resolve().parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": root},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exception) -> None:
        self.process.kill()
        self.process.communicate()

    def read(self, path: Path, what: str, *, audit: bool = True) -> str:
        """How reading the file ended: one of `REFUSALS` or `ACCEPTED`."""
        self.process.stdin.write(f"{path}\t{int(audit)}\n")
        self.process.stdin.flush()
        outcome = self.process.stdout.readline().strip()
        if not outcome:
            code = self.process.wait()
            late = -code in (signal.SIGALRM, signal.SIGPROF)
            raise AssertionError(f"{what} {path.suffix}: {'took too long' if late else f'ended the process, {code}'}")
        assert outcome in (*REFUSALS, ACCEPTED), f"{what} {path.suffix}: {outcome}"
        assert not (self.folder / CANARY).exists(), f"{what} {path.suffix}: was executed"
        return outcome


def _answer() -> None:
    """Read the files that standard input names and say how each ended, a line each."""
    for line in sys.stdin:
        path, audit = line.rstrip("\n").split("\t")
        # Nothing handles these signals: they end the process even where Python would not come to a handler.
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT)
        with audited(path) as events:
            try:
                load(path)
                outcome = ACCEPTED
            except (DataError, FileAccessError) as error:
                outcome = type(error).__name__
            except Exception as error:
                outcome = repr(error).replace("\n", " ")
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(f"caused {events[0]}" if events and audit == "1" else outcome, flush=True)


if __name__ == "__main__":
    _answer()
