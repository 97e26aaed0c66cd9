"""A signal that comes while a stage of training runs."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def signal_in_stage(runner, stage: int, number: int = signal.SIGINT) -> Iterator[list[int]]:
    """Inside, this process gets the signal when stage number `stage` of all that `runner` runs begins.

    Args:
        runner: a StageRunner, or the class: then of all that are run.
        stage: counts from 1; with 0 no signal comes.

    Gives:
        A list that holds the number of stages that have begun.
    """
    original, begun = runner.run, [0]

    def run(*arguments, **options):
        begun[0] += 1
        if begun[0] == stage:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    with patch.object(runner, "run", run):
        yield begun
