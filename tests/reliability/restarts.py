"""Processes of torchrun that are killed at any moment: all start again, and end as if nothing had happened."""

import random
import tempfile
from pathlib import Path

from tests.training.torchrun import killed_and_restarted, same_training
from tests.training.torchrun import run as run_processes

from .runs import small_run

EPOCHS = 6


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` runs of two processes; who is killed and when is drawn from `seed`."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = small_run(folder, EPOCHS)
        done = run_processes(2, *settings, "--out", str(folder / "whole"))
        assert done.returncode == 0, done.stderr
        for number in range(count):
            out, steps, which = folder / f"run{number}", generator.randrange(1, 3 * EPOCHS), generator.randrange(2)
            killed_and_restarted(settings, out, steps, generator.uniform(0, 0.2), which)
            where = f"run {number} of seed {seed}: process {which} killed after {steps} steps"
            assert same_training(folder / "whole", out), f"{where}, and the weights are others"
    return {"processes killed": count, "ended with the same weights": count}
