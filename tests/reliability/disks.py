"""Training on a disk that is full, over its quota or read-only: exit code 74, one sentence, and no checkpoint harmed.

A full and a read-only disk are mounted in a name space of their own (unshare), which ends with the process. A quota is
the system's limit on the size of a file.
"""

import json
import math
import random
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rohydr_fast.errors import EXIT_IO
from rohydr_fast.training.checkpoint import STATE, load_checkpoint
from rohydr_fast.training.run_directory import CONFIG, RunDirectory

from .runs import COMMAND, ENVIRONMENT, assert_same, results, small_run, stop_here, train_here

PAGE = 4096
STAGE = 14
"""Where the run that is resumed was stopped: in the second epoch, with the best and two checkpoints written."""
FULL = """
size="$1" disk="$2" was="$3"; shift 3
mount -t tmpfs -o size="$size" tmpfs "$disk"
cp -a "$was"/. "$disk"
code=0; "$@" || code=$?
rm -rf "$was"; cp -a "$disk" "$was"
exit $code
"""
READ_ONLY = """
disk="$1"; shift
mount --bind "$disk" "$disk"; mount -o remount,bind,ro "$disk"
exec "$@"
"""
Disk = Callable[[list[str], Path, random.Random, int], subprocess.CompletedProcess]


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` processes on such disks, resumed runs and new ones by turns; sizes are drawn from `seed`."""
    counts: dict[str, int | str] = {"new": 0, "resumed": 0, "exit 74": 0, "had room": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = small_run(folder)
        stop_here(STAGE, *options, "--out", str(folder / "stopped"))
        code, errors = train_here(*options, "--out", str(folder / "whole"))
        assert code == 0, errors
        expected = results(folder / "whole")
        largest = _checkpoint_bytes(folder / "whole")
        disks = _possible_disks(folder, counts)
        for number in range(count):
            kind = list(disks)[number % len(disks)]
            resumed = number // len(disks) % 2 == 0
            generator = random.Random(seed << 32 | number)
            disk = folder / f"disk{number}"
            disk.mkdir()
            out = disk / "run"
            if resumed:
                shutil.copytree(folder / "stopped", out)
            where = f"process {number} of seed {seed}, {kind} disk, {'resumed' if resumed else 'new'}"
            before = _last(out)
            command = [*COMMAND, *(["--resume", str(out)] if resumed else [*options, "--out", str(out)])]
            done = disks[kind](command, disk, generator, largest)
            _check_end(done, disk, where)
            counts[kind] += 1
            counts["resumed" if resumed else "new"] += 1
            counts["exit 74" if done.returncode else "had room"] += 1
            if resumed:
                _check_kept(out, before, where)
            again = ["--resume", str(out)] if (out / CONFIG).exists() else [*options, "--out", str(out)]
            code, errors = train_here(*again)
            assert code == 0, f"{where}: with room again, {errors}"
            assert_same(results(out), expected, where)
            shutil.rmtree(disk)
    return counts


def _full(command: list[str], disk: Path, generator: random.Random, largest: int) -> subprocess.CompletedProcess:
    """A disk with room for some of what a run writes, three checkpoints at most."""
    used = sum(-(-path.stat().st_size // PAGE) * PAGE for path in disk.rglob("*") if path.is_file())
    size = used + PAGE + int(3 * generator.random() ** 2 * largest)
    was = disk.with_name(f"{disk.name}.was")
    shutil.copytree(disk, was)
    done = _run(_in_name_space(FULL, str(size), str(disk), str(was), *command))
    shutil.rmtree(disk)
    was.rename(disk)
    return done


def _quota(command: list[str], disk: Path, generator: random.Random, largest: int) -> subprocess.CompletedProcess:
    """No file may be longer than something between a byte and more than any file needs."""
    size = int(math.exp(generator.uniform(0, math.log(1.5 * largest))))
    return _run(command, preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)))


def _read_only(command: list[str], disk: Path, generator: random.Random, largest: int) -> subprocess.CompletedProcess:
    """Nothing can be written."""
    return _run(_in_name_space(READ_ONLY, str(disk), *command))


def _possible_disks(folder: Path, counts: dict[str, int | str]) -> dict[str, Disk]:
    """The disks that this system lets us have, by kind; the others are told in `counts`."""
    disks: dict[str, Disk] = {"full": _full, "over quota": _quota, "read-only": _read_only}
    try:
        allowed = _run(_in_name_space('mount -t tmpfs tmpfs "$1"', str(folder))).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        del disks["full"], disks["read-only"]
        counts["full and read-only"] = "not tried: this system lets us mount nothing"
    counts.update(dict.fromkeys(disks, 0))
    return disks


def _in_name_space(script: str, *arguments: str) -> list[str]:
    return ["unshare", "--map-root-user", "--mount", "sh", "-ec", script, "sh", *arguments]


def _run(command: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, **options)


def _check_end(done: subprocess.CompletedProcess, disk: Path, where: str) -> None:
    """It ended well, or with exit code 74 and one sentence that says where."""
    assert done.returncode in (0, EXIT_IO), f"{where}: exit code {done.returncode}, {done.stderr}"
    assert "Traceback" not in done.stderr, f"{where}: {done.stderr}"
    sentences = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(sentences) == (done.returncode != 0), f"{where}: {done.stderr}"
    assert all(str(disk) in sentence for sentence in sentences), f"{where}: {sentences}"


def _check_kept(out: Path, before: dict[str, bytes], where: str) -> None:
    """The last checkpoint is that of before, byte for byte, or a later one that is whole."""
    was, now = (state["cursor"] for state in (json.loads(before[STATE]), load_checkpoint(_checkpoint(out))[1]))
    assert now["epoch"] > was["epoch"] or _last(out) == before, f"{where}: the checkpoint of before has changed"


def _last(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in _checkpoint(out).glob("*")}


def _checkpoint(out: Path) -> Path:
    return RunDirectory(out).checkpoint("last")


def _checkpoint_bytes(out: Path) -> int:
    return sum(len(content) for content in _last(out).values())
