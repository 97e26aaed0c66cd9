"""The process of benchmarks/gpu.py that runs cells: python benchmarks/gpu_worker.py PLAN.json.

It writes what happens as one JSON object a line. A kernel that never ends, or that takes the device from its process,
costs the others nothing: the parent ends this process, starts another, and leaves that contender out.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from gpu_budget import OUT_OF_TIME, Budget, Slices
from gpu_cell import CellRun, DeviceLost, not_run
from gpu_problem import Cell, Settings
from gpu_timing import Clock, peaks

Emit = Callable[[dict], None]


def work(plan: dict, emit: Emit) -> None:
    """Run the cells of a plan.

    Args:
        plan: "settings", "cells" and "providers"; "seconds" that are left; "peaks" if they are known already;
            "banned", a list of [workload, provider, dtype, reason].
        emit: takes {"peaks"}, {"begin": [cell, provider]}, {"cell", "rows"} and, at the end, {"done"} or {"lost"}.
    """
    settings, budget = Settings(**plan["settings"]), Budget(plan["seconds"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    clock = Clock(settings.device)
    if not plan.get("peaks"):
        plan["peaks"] = peaks(clock, settings.peak_size)
        emit({"peaks": plan["peaks"]})
    banned = {tuple(key): reason for *key, reason in plan.get("banned", [])}
    slices = Slices(budget)

    def begin(cell: Cell, provider: str) -> None:
        emit({"begin": [asdict(cell), provider]})

    runner = CellRun(settings, clock, plan["peaks"], slices, banned, begin)
    for fields in plan["cells"]:
        cell = Cell(**fields)
        try:
            rows = runner.run(cell, plan["providers"]) if budget.left() else None
        except DeviceLost as failure:
            emit({"lost": str(failure)})
            return
        emit({"cell": fields, "rows": rows or not_run(cell, plan["providers"], OUT_OF_TIME)})
    emit({"done": True})


def main(path: str) -> int:
    """Run the plan of a file; only lines of JSON leave on standard output, whatever libraries print."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: dict) -> None:
        lines.write(json.dumps(event) + "\n")
        lines.flush()

    work(json.loads(Path(path).read_text(encoding="utf-8")), emit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
