"""The side of benchmarks/gpu.py that watches its worker: it passes rows on, and replaces one that hangs or dies."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from gpu_budget import OUT_OF_TIME, Budget
from gpu_problem import Cell, Settings

ROOT = Path(__file__).resolve().parent.parent
SILENCE = 100.0
"""Seconds without a word after which a worker counts as hung: more than a compiler takes."""
GRACE = 20.0
"""Seconds beyond its time after which a worker is stopped in any case."""
MOST_WORKERS = 6


def environment() -> dict[str, str]:
    """That of child processes, which find the package in the checkout."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def stop(process: subprocess.Popen) -> None:
    """End a process that was started in a session of its own, with its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def worker_events(plan: dict, log: Path) -> Iterator[dict]:
    """What a new worker writes, and at last {"ended": why} where it did not come to its end."""
    end = time.monotonic() + plan["seconds"] + GRACE
    with tempfile.TemporaryDirectory() as folder, open(log, "ab") as errors:
        path = Path(folder) / "plan.json"
        path.write_text(json.dumps(plan), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).with_name("gpu_worker.py")), str(path)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment(), start_new_session=True, text=True
        )
        lines: queue.Queue = queue.Queue()

        def read() -> None:
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        try:
            while True:
                silence = max(0.0, min(SILENCE, end - time.monotonic()))
                line = lines.get(timeout=silence)
                if line is None:
                    yield {"ended": f"the process ended with code {process.wait()}; see {log.name}"}
                    return
                event = json.loads(line)
                yield event
                if "done" in event or "lost" in event:
                    return
        except queue.Empty:
            yield {"ended": f"nothing happened for {silence:.0f} s, and the process was stopped"}
        finally:
            stop(process)


def run_cells(
    settings: Settings,
    cells: list[Cell],
    providers: list[str],
    budget: Budget,
    events: Callable[[dict], Iterator[dict]],
    report,
) -> None:
    """Every cell, by as many workers as it takes; what there was no time for becomes rows that say so.

    Args:
        events: a plan to what a worker does with it, see `gpu_worker.work`.
        report: has `peaks(found)` and `add(rows)`.
    """
    waiting = {json.dumps(asdict(cell)): cell for cell in cells}
    banned: list[list[str]] = []
    found, reason = None, OUT_OF_TIME
    for _ in range(MOST_WORKERS):
        if not waiting or not budget.left():
            break
        plan = {
            "settings": asdict(settings),
            "cells": [asdict(cell) for cell in waiting.values()],
            "providers": providers,
            "seconds": budget.left(),
            "peaks": found,
            "banned": banned,
        }
        current, why = None, None
        for event in events(plan):
            found = event.get("peaks", found)
            if "peaks" in event:
                report.peaks(found)
            if "begin" in event:
                current = event["begin"]
            if "rows" in event:
                report.add(event["rows"])
                del waiting[json.dumps(event["cell"])]
                current = None
            why = event.get("lost") or event.get("ended")
        if why is None:
            break
        if current is None:
            reason = f"the worker did not come to a cell: {why}"
            break
        cell, provider = current
        banned.append([cell["workload"], provider, cell["dtype"], f"at W={cell['width']}, B={cell['batch']}: {why}"])
    for cell in waiting.values():
        report.add([{**asdict(cell), "provider": p, "gate": "not run", "reason": reason} for p in providers])
