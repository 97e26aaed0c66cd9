"""What must never happen, tried many times: each campaign makes random trouble and counts what came of it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from tests.threads import one_thread


@dataclass(frozen=True)
class Campaign:
    """A module of this package has `run(count, seed)`: it raises AssertionError where a promise was broken."""

    module: str
    promise: str
    few: int  # how many for a test run
    all: int  # how many when all are asked for

    def run(self, count: int, seed: int) -> dict[str, int | str]:
        """What was counted, by name, on one thread of torch; where nothing could be tried, "skipped" says why."""
        function: Callable[[int, int], dict[str, int | str]] = importlib.import_module(
            f"{__package__}.{self.module}"
        ).run
        with one_thread():
            return function(count, seed)


CAMPAIGNS = [
    Campaign("pickles", "a damaged pickle gives plain data or a DataError, and executes nothing", 20_000, 1_000_000),
    Campaign("data_files", "a hostile or damaged file is refused or a data set within 2 s, nothing runs", 600, 20_000),
    Campaign("bit_flips", "a checkpoint with a flipped bit or a missing end is refused, file named", 400, 20_000),
    Campaign("kills", "after kill -9 in a save the checkpoint is the finished one or a later one", 20, 1_000),
    Campaign("stops", "stopped in any stage and resumed is never stopped, bit for bit", 4, 1_000),
    Campaign("signals", "Ctrl-C and SIGTERM at any moment lose nothing, and the run goes on bit for bit", 4, 60),
    Campaign("disks", "a full, limited or read-only disk is exit code 74, and no checkpoint is harmed", 4, 90),
    Campaign("restarts", "of two processes one is killed, both restart, and end bit for bit", 1, 10),
    Campaign("starts", "of processes that start in one directory one trains, the others name it", 8, 50),
    Campaign("kernel_cases", "a kernel is exact, and the same bits however it is called", 20_000, 200_000),
    Campaign("repeats", "the same call gives the same bits, on any number of threads", 25, 250),
    Campaign("hostile_calls", "a call of the native core with wrong arguments is refused", 22_000, 6_800_000),
    Campaign("public_calls", "a public operation names the argument that is wrong, whatever it is", 5_000, 200_000),
    Campaign("planted_faults", "a fault planted in a kernel is noticed by the tests", 2, 100),
    Campaign("precision", "bfloat16 autocast trains as float32 does, to 5 % of a loss", 20, 200),
    Campaign("long_runs", "30 epochs from any seed stay finite", 1, 10),
]
