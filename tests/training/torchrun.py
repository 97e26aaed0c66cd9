"""Training by several processes, as torchrun starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from rohydr_fast.training.checkpoint import load_checkpoint


def command(processes: int, *arguments: str, module: str = "train", restarts: int = 0) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    launcher += [f"--max-restarts={restarts}"] if restarts else []
    return [sys.executable, *(launcher if processes > 1 else []), "-m", f"rohydr_fast.{module}", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(processes: int, *arguments: str, module: str = "train") -> subprocess.CompletedProcess:
    line = command(processes, *arguments, module=module)
    return subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=300)


def steps(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path / "checkpoints" / "last")[0]["model"]


def same_training(first: Path, second: Path) -> bool:
    """Whether two runs have the same weights and metrics, bit for bit."""
    one, other = weights(first), weights(second)
    logs = [(path / "metrics.jsonl").read_bytes() for path in (first, second)]
    return logs[0] == logs[1] and all(torch.equal(one[name], other[name]) for name in one)


def workers(launcher: int) -> list[int]:
    """Processes that `launcher` has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == launcher:
            found.append(int(entry.parent.name))
    return sorted(found)


def killed_and_restarted(settings: list[str], out: Path, steps_before: int, wait: float = 0.0, which: int = -1) -> None:
    """A run of two processes, of which one is killed `wait` seconds after so many steps are logged; torchrun restarts.

    Args:
        which: 0 or 1, the process that is killed.
    """
    line = command(2, *settings, "--out", str(out), restarts=2)
    launched = subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoints" / "last").exists() or len(steps(out)) < steps_before:
            assert launched.poll() is None and time.monotonic() < deadline, launched.communicate()[1]
            time.sleep(0.02)
        time.sleep(wait)
        found = workers(launched.pid)
        if found:
            os.kill(found[which], signal.SIGKILL)
        _, errors = launched.communicate(timeout=240)
    finally:
        launched.kill()
    assert launched.returncode == 0, errors
