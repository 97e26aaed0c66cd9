"""Processes that come to the same place at the same time."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WAIT = "print('ready', flush=True); sys.stdin.readline()\n"


@contextmanager
def started_at_once(count: int, imports: str, code: str, *arguments: str) -> Iterator[list[subprocess.Popen]]:
    """Processes that run `code` with `sys.argv[1:]` = `arguments`, all let go when the last has done its imports.

    Their errors come with their output. Those that still run when the block ends are killed.
    """
    command = [sys.executable, "-c", f"import sys\n{imports}\n{WAIT}{code}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(command, env=environment, **pipes))
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            line = process.stdout.readline()
            assert line == "ready\n", line + process.stdout.read()
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        yield processes
