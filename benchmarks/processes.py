"""A cell of a benchmark, what is measured together, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def in_process(script: str, cell: dict) -> tuple[dict | None, str]:
    """Run ``script --cell CELL --json FILE`` with as many threads as the cell says.

    The OpenMP pools of torch and of compiled code read their size once, when they start; inductor writes the number
    of threads into its code; a runtime's idle pool still takes cores. A fresh process has none of these from before.

    Returns:
        What it wrote; or None, and why there is nothing.
    """
    count = str(cell["threads"])
    sizes = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.json"
        command = [sys.executable, str(Path(script).resolve()), "--cell", json.dumps(cell), "--json", str(path)]
        done = subprocess.run(command, env=os.environ | sizes)
        if done.returncode or not path.exists():
            return None, f"the process of this cell ended with code {done.returncode}"
        return json.loads(path.read_text(encoding="utf-8")), ""
