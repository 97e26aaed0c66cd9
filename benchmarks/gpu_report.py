"""The JSON document and the Markdown of benchmarks/gpu.py, written again after every cell."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from documents import rounded
from gpu_problem import PROVIDERS

BAD = ("fail", "error")
EXPLANATION = """\
Microseconds a step of the whole batch: the median on the device, calls queued while it is held up; in brackets, that
of whole calls with the host's part. ^: the host may have been slower than the device. Every time stands behind a gate.
The share of the tensor peak is useful operations over time, against a measured matrix product of 8192^3 in that dtype;
the share of L2 is weights, K and V, once for each sample and step, against a measured rate of reads or copies in L2."""


class Report:
    """Collects a run's results; `save` writes gpu.json and gpu.md, each at once or not at all.

    Args:
        show: takes a line for the terminal.
    """

    def __init__(self, folder: Path, facts: dict, show: Callable[[str], None]):
        self.folder, self.show = folder, show
        self.document = {"benchmark": "gpu", **facts, "peaks": None, "rows": []}
        self.save()

    def set(self, **parts) -> None:
        """Results of the build, the tests or the sanitizer."""
        self.document |= parts
        self.save()

    def peaks(self, found: dict) -> None:
        """What the device reaches."""
        self.show(_peaks(found))
        self.set(peaks=found)

    def add(self, rows: list[dict]) -> None:
        """The rows of a cell."""
        for row in rows:
            self.show(line(row))
        self.document["rows"] += rows
        self.save()

    def save(self) -> None:
        """Write both files."""
        made = rounded(self.document)
        _write(self.folder / "gpu.json", json.dumps(made, indent=1, allow_nan=False) + "\n")
        _write(self.folder / "gpu.md", markdown(made) + "\n")

    def exit_code(self) -> int:
        """1 when something was wrong or broke, else 0."""
        parts = [self.document.get(name) or {} for name in ("build", "tests", "sanitizer")]
        broken = any(part.get("status") in ("failed", "timed out") for part in parts)
        return 1 if broken or any(row["gate"] in BAD for row in self.document["rows"]) else 0


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def line(row: dict) -> str:
    """One row for the terminal."""
    where = f"{row['workload']:<9} W={row['width']:<3} B={row['batch']:<3} {row['dtype']} {row['provider']:<8}"
    if row["gate"] != "pass":
        return f"{where} {row['gate']}: {row['reason']}"
    errors = ", ".join(f"{error:.1e}" for error in row["errors"])
    if "seconds" in row:
        return f"{where} {row['seconds']['median']:.3f} s an iteration, errors {errors}"
    times, calls = row["us_per_step"], row["call_us_per_step"]["median"]
    spread = f"{times['p20']:.4g} .. {times['p80']:.4g}{', bound by the host' if row['host_bound'] else ''}"
    share = f"{row['share_of_tensor_peak']:.1%} of the tensor peak"
    return f"{where} {times['median']:.4g} us/step ({spread}), call {calls:.4g}, {share}, errors {errors}"


def markdown(document: dict) -> str:
    """Head, peaks, build and tests, a table for each workload, and every reason once."""
    parts = [_head(document), EXPLANATION]
    if document["peaks"]:
        parts.append(_peaks(document["peaks"]))
    parts += [_phase(document, name) for name in ("build", "tests", "sanitizer") if document.get(name)]
    rows = document["rows"]
    notes = _notes(rows)
    for workload in dict.fromkeys(row["workload"] for row in rows):
        own = [row for row in rows if row["workload"] == workload]
        parts.append(f"## {workload}\n\n{_table(own, notes)}")
    if notes:
        parts.append("\n".join(f"{number}. {reason}" for reason, number in notes.items()))
    return "\n\n".join(parts)


def _head(document: dict) -> str:
    versions = ", ".join(f"{name} {document[name] or 'unknown'}" for name in ("driver", "CUDA", "torch", "triton"))
    commit = (document["commit"] or "unknown")[:9]
    sizes = document["settings"]
    task = f"L = {sizes['blocks']}, T = {sizes['tokens']}, S = {sizes['keys']}, C = {sizes['channels']}"
    return (
        f"# {document['device']}\n\n{document['date']}, commit {commit}; {versions}. {sizes['steps']} steps, {task}; "
        "4 heads at W = 64, 8 at W = 128."
    )


def _peaks(found: dict) -> str:
    rates = ", ".join(f"{name} {rate / 1e12:.4g} TFLOP/s" for name, rate in found["tensor_flops"].items())
    return f"Measured peaks: {rates}; L2 {found['l2_bytes_per_second'] / 1e12:.3g} TB/s."


def _phase(document: dict, name: str) -> str:
    part = document[name]
    text = f"{name.capitalize()}: {part['status']}"
    if "passed" in part:
        text += f", {part['passed']} passed, {part['failed']} failed, {part['skipped']} skipped"
    if "tools" in part:
        text += "; " + ", ".join(f"{tool} {one['status']}" for tool, one in part["tools"].items())
    if part.get("seconds"):
        text += f", {part['seconds']:.0f} s"
    return text + (f" ({part['reason']})." if part.get("reason") else ".")


def _notes(rows: list[dict]) -> dict[str, int]:
    """Every reason for a missing time, numbered."""
    reasons = dict.fromkeys(_note(row) for row in rows if row["gate"] != "pass")
    return {reason: number for number, reason in enumerate(reasons, 1)}


def _note(row: dict) -> str:
    return f"{row['provider']}: {row['gate']}, {row['reason']}"


def _table(rows: list[dict], notes: dict[str, int]) -> str:
    providers = [name for name in PROVIDERS if any(row["provider"] == name for row in rows)]
    shares = "cuda" in providers and rows[0]["workload"] != "iteration"
    titles = ["W", "B", "dtype", *providers] + (["cuda, of the tensor peak", "cuda, of L2"] if shares else [])
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    cells: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        cells.setdefault((row["width"], row["batch"], row["dtype"]), {})[row["provider"]] = row
    for key, cell in cells.items():
        texts = [_cell(cell.get(name), notes) for name in providers]
        if shares:
            own = cell.get("cuda", {})
            texts += [_percent(own.get("share_of_tensor_peak")), _percent(own.get("share_of_l2"))]
        lines.append(f"| {' | '.join(map(str, (*key, *texts)))} |")
    return "\n".join(lines)


def _cell(row: dict | None, notes: dict[str, int]) -> str:
    if row is None:
        return "-"
    if row["gate"] != "pass":
        return f"{row['gate']} ({notes[_note(row)]})"
    if "seconds" in row:
        return f"{row['seconds']['median']:.3g} s"
    mark = "^" if row["host_bound"] else ""
    return f"{row['us_per_step']['median']:.4g}{mark} ({row['call_us_per_step']['median']:.4g})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
