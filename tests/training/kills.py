"""Processes that are killed while they save: python -m tests.training.kills KILLS SEED

Prints how many checkpoints were readable afterwards, and exits with 1 when one was not, or was older than one that had
been finished before.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from rohydr_fast.training.checkpoint import load_checkpoint, save_checkpoint


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


def run(kills: int, seed: int) -> dict[str, int]:
    """Counts of: readable, and broken off, where the process died between two files of a checkpoint."""
    torch.set_num_threads(1)
    generator = random.Random(seed)
    readable, broken_off = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "checkpoints" / "last"
        save(directory, 0)
        number = 0
        for _ in range(kills):
            found, finished = kill_once(directory, number + 1, generator.uniform(0.0, 0.02))
            assert found >= finished >= number, f"{found} is there, {finished} was finished"
            readable, number = readable + 1, found
            broken_off += (directory.parent / f".{directory.name}.tmp").exists() or not directory.exists()
    return {"kills": kills, "readable": readable, "broken off": broken_off, "saved": number}


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))
