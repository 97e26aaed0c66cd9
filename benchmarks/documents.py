"""The JSON document of a benchmark: what was measured, where, with what, and whether the machine was quiet."""

import datetime
import json
import math
import re
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from measure import Peak, contention, summary

from rohydr_fast import _native
from rohydr_fast.doctor import environment


def collect(cells: Iterable[dict], run: Callable[[dict], dict], show: Callable[[dict], str]) -> tuple[list[dict], dict]:
    """Run the cells one after another and print their rows.

    Args:
        run: a cell to its "rows", "probes" (pairs of GFLOP/s: alone, together), "isa" of the probes, and more.

    Returns:
        What was found in each, and what `document` takes as `probed`.
    """
    results, probes, isas = [], {}, set()
    for cell in cells:
        found = run(cell)
        results.append(found)
        for row in found.get("rows", []):
            print(show(row), flush=True)
        probes.setdefault(cell["threads"], []).extend(Peak(*pair) for pair in found["probes"])
        isas |= {found["isa"]} - {None}
    return results, {"probes": probes, "isas": isas}


def document(name: str, settings: dict, probed: dict, **rows: list[dict]) -> dict:
    """The document of a run of benchmark `name`."""
    facts, probes = environment(), probed["probes"]
    peaks = {
        str(threads): {key: summary([getattr(p, key) for p in series]) for key in ("alone", "together")}
        for threads, series in probes.items()
        if series
    }
    return {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": facts["commit"],
        "dirty": facts["dirty"],
        "machine": {
            "name": f"{facts['cpu']}, {facts['cores_available']} cores",
            **{key: facts[key] for key in ("cpu", "cores", "cores_available", "machine", "platform")},
        },
        "versions": _versions(facts),
        "settings": settings,
        "fma_peak": {"isa": ", ".join(sorted(probed["isas"])) or None, "gflops": peaks},
        **contention(probes),
        **rows,
    }


def _versions(facts: dict) -> dict:
    """Of everything that a time depends on; None where a package is not installed."""
    found = {key: facts[key] for key in ("rohydr_fast", "python", "numpy", "torch")}
    for package in ("onnxruntime", "openvino", "onnx", "onnxscript"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found | {"compiler": _native.build_info().get("compiler")}


def rounded(value, digits: int = 5):
    """The same JSON with floats of so many digits; NaN and infinity, which JSON has not, become None."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def read(path: str) -> dict:
    """A document from its file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write(given: str, made: dict) -> Path:
    """Write `made` to the file `given`; a folder gets MACHINE/DATE-COMMIT-BENCHMARK.json. Returns where it is."""
    path = Path(given)
    if path.is_dir() or given.endswith("/"):
        slug = re.sub(r"[^a-z0-9]+", "-", made["machine"]["name"].lower()).strip("-")
        commit = (made["commit"] or "unknown")[:9] + ("-dirty" if made["dirty"] else "")
        path = path / slug / f"{made['date'][:10]}-{commit}-{made['benchmark']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path
