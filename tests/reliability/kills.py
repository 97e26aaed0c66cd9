"""Processes that are killed while they save a checkpoint: it can be read, and is no older than what was finished.

They are forked from a process of its own (python -m tests.reliability.kills KILLS SEED): forking one that has threads
is no test of saving.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from rohydr_fast.training.checkpoint import load_checkpoint, save_checkpoint

SAVES = 3
"""A process may save for as long as so many checkpoints take."""


def save(directory: Path, number: int) -> None:
    """Checkpoint `number`: every tensor tells it."""
    model = {"w": torch.full((64, 64), float(number)), "n": torch.tensor(number)}
    save_checkpoint(directory, {"model": model, "optimizer": {"m": model["w"] / 2}}, {"number": number})


def save_forever(directory: Path, first: int, finished: int) -> None:
    """Save checkpoints number `first`, .. and write each number to `finished` (a pipe) when it is done."""
    number = first
    while True:
        save(directory, number)
        os.write(finished, number.to_bytes(8, "little"))
        number += 1


def kill_once(directory: Path, first: int, delay: float) -> tuple[int, int]:
    """Start saving in a process of its own, kill it after `delay` seconds, and read what is there.

    Returns:
        The number of the checkpoint that is there, and that of the last one whose saving had returned.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_forever(directory, first, writer)
        finally:
            os._exit(1)
    os.close(writer)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = b""
    while piece := os.read(reader, 1 << 16):
        told += piece
    os.close(reader)
    finished = int.from_bytes(told[-8:], "little") if told else first - 1
    tensors, state = load_checkpoint(directory)
    number = state["number"]
    assert int(tensors["model"]["n"]) == number and (tensors["model"]["w"] == number).all(), "a mixture of two"
    assert (tensors["optimizer"]["m"] == number / 2).all(), "a mixture of two"
    return number, finished


def kill_many(kills: int, seed: int) -> dict[str, int]:
    """Counts of: readable, and broken off, where the process died between two files of a checkpoint."""
    torch.set_num_threads(1)
    generator = random.Random(seed)
    counts = {"kills": 0, "readable": 0, "broken off": 0, "saved": 0}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "checkpoints" / "last"
        started = time.perf_counter()
        save(directory, 0)
        longest = SAVES * (time.perf_counter() - started)  # disks differ a hundredfold in how long they take
        for _ in range(kills):
            found, finished = kill_once(directory, counts["saved"] + 1, generator.uniform(0.0, longest))
            assert found >= finished >= counts["saved"], f"{found} is there, {finished} was finished"
            counts["kills"], counts["readable"], counts["saved"] = counts["kills"] + 1, counts["readable"] + 1, found
            counts["broken off"] += (directory.parent / f".{directory.name}.tmp").exists() or not directory.exists()
    return counts


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` kills at moments drawn from `seed`."""
    if not hasattr(os, "fork"):
        return {"skipped": "this system cannot fork"}
    command = [sys.executable, "-m", __spec__.name, str(count), str(seed)]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["readable"] == count
    assert counts["broken off"] > count // 10, f"hardly any kill came in the middle of a save: {counts}"
    return counts


if __name__ == "__main__":
    print(json.dumps(kill_many(int(sys.argv[1]), int(sys.argv[2]))))
