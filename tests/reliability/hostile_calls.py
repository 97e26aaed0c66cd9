"""Random calls of every function of the native core, in processes of their own: refused by name, never a signal."""

import ast
import subprocess
import sys
from collections import Counter

from tests.kernels.fuzz import ENTRIES

CALLS_OF_A_PROCESS = 50_000


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` calls of all entries together: how many were refused, and with what."""
    counts = Counter()
    for number, start in enumerate(range(0, count, CALLS_OF_A_PROCESS)):
        calls, own = min(CALLS_OF_A_PROCESS, count - start), 1000 * seed + number
        command = [sys.executable, "-m", "tests.kernels.fuzz", str(calls), str(own)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, (
            f"seed {own}: exit code {done.returncode}, {done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
        counts.update(ast.literal_eval(done.stdout))
    return {"entries": len(ENTRIES), "calls": count, **counts}
