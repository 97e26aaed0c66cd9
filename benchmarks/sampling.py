"""How fast x_0 is sampled: the fused loop against eager PyTorch, torch.compile, ONNX Runtime and OpenVINO.

    python benchmarks/sampling.py [--preset narrow paper wide] [--batch 1 32] [--threads 1 2] [--steps 50]
                                  [--providers reference hoisted compile onnxruntime openvino cpp] [--rounds N]
                                  [--json FILE|DIR] [--ragged] [--markdown FILE|-] [--figure FILE.svg|png]
    python benchmarks/sampling.py --from FILE.json [--markdown FILE|-] [--figure FILE.svg|png]

A contender is timed only after its x_0 was compared with float64 on the same noise, also with masks; one that is
wrong gets no time, and the exit code is 1. benchmarks/measure.py says how times are taken. The opponents need
pip install -e ".[bench]"; one that is not there is skipped with the reason.
"""

import argparse
import datetime
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import report
from measure import Peak, contention, summary
from sampling_cell import run_cell
from sampling_problem import PREDICTION, PRESETS
from sampling_providers import PROVIDERS

from rohydr_fast import _native
from rohydr_fast.doctor import environment


def cells(options: argparse.Namespace) -> list[dict]:
    """What is run, one process for each."""
    common = {"steps": options.steps, "rounds": options.rounds, "providers": options.providers}
    made = [
        {"kind": "cell", "preset": preset, "batch": batch, "threads": threads, **common}
        for threads in options.threads
        for preset in options.preset
        for batch in options.batch
    ]
    if options.ragged:
        names = [name for name in options.providers if name in ("hoisted", "cpp")]
        scaling = {"kind": "scaling", "rounds": options.rounds, "providers": names}
        made += [{**scaling, "preset": p, "threads": n} for n in options.threads for p in options.preset]
    return made


def in_subprocess(cell: dict) -> dict:
    """Run one cell in a process of its own.

    The OpenMP pools of torch and of compiled code read their size once, when they start; inductor writes the number
    of threads into its code; a runtime's idle pool still takes cores. A fresh process has none of these from before.
    """
    count = str(cell["threads"])
    sizes = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--cell", json.dumps(cell), "--json", str(path)]
        done = subprocess.run(command, env=os.environ | sizes)
        if done.returncode or not path.exists():
            reason = f"the process of this cell ended with code {done.returncode}"
            keys = {key: cell.get(key) for key in ("preset", "batch", "threads", "steps")}
            failed = [{**keys, "provider": name, "gate": "error", "reason": reason} for name in cell["providers"]]
            return {"scaling" if cell["kind"] == "scaling" else "rows": failed, "probes": [], "isa": None}
        return json.loads(path.read_text(encoding="utf-8"))


def run_all(options: argparse.Namespace, execute: Callable[[dict], dict]) -> dict:
    """The document of a run."""
    facts = environment()
    rows, scaling, probes, isas = [], [], {}, set()
    for cell in cells(options):
        found = execute(cell)
        for row in found.get("rows", []):
            print(report.line(row), flush=True)
        rows += found.get("rows", [])
        scaling += found.get("scaling", [])
        probes.setdefault(cell["threads"], []).extend(Peak(*pair) for pair in found["probes"])
        isas |= {found["isa"]} - {None}
    verdict = contention(probes)
    peaks = {
        str(threads): {key: summary([getattr(p, key) for p in series]) for key in ("alone", "together")}
        for threads, series in probes.items()
        if series
    }
    return {
        "benchmark": "sampling",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": facts["commit"],
        "dirty": facts["dirty"],
        "machine": {
            "name": f"{facts['cpu']}, {facts['cores_available']} cores",
            **{key: facts[key] for key in ("cpu", "cores", "cores_available", "machine", "platform")},
        },
        "versions": versions(facts),
        "settings": {"steps": options.steps, "dtype": "float32", "prediction": PREDICTION},
        "fma_peak": {"isa": ", ".join(sorted(isas)) or None, "gflops": peaks},
        **verdict,
        "rows": rows,
        **({"scaling": scaling} if options.ragged else {}),
    }


def versions(facts: dict) -> dict:
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


def result_path(given: str, document: dict) -> Path:
    """`given`, or where a document belongs inside it when it is a folder: MACHINE/DATE-COMMIT-sampling.json."""
    path = Path(given)
    if not path.is_dir() and not given.endswith("/"):
        return path
    slug = re.sub(r"[^a-z0-9]+", "-", document["machine"]["name"].lower()).strip("-")
    commit = (document["commit"] or "unknown")[:9] + ("-dirty" if document["dirty"] else "")
    return path / slug / f"{document['date'][:10]}-{commit}-sampling.json"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", choices=list(PRESETS), default=list(PRESETS), metavar="PRESET")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS), default=list(PROVIDERS), metavar="PROVIDER")
    parser.add_argument("--rounds", type=int, help="default: as many as take 90 s, between 7 and 30")
    parser.add_argument("--ragged", action="store_true", help="also how cost grows with tokens, keys, batch and steps")
    parser.add_argument(
        "--json", metavar="FILE", help="write the results; a folder gets MACHINE/DATE-COMMIT-sampling.json"
    )
    parser.add_argument("--from", dest="source", metavar="FILE", help="read results instead of measuring")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables; - prints them")
    parser.add_argument("--figure", metavar="FILE", help="draw the throughput, .svg or .png")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None, execute: Callable[[dict], dict] = in_subprocess) -> int:
    """Run or read, write what was asked for; 1 when a contender was wrong or broke, else 0."""
    options = make_parser().parse_args(argv)
    if options.cell:
        Path(options.json).write_text(json.dumps(run_cell(json.loads(options.cell))), encoding="utf-8")
        return 0
    if options.source:
        document = json.loads(Path(options.source).read_text(encoding="utf-8"))
    else:
        document = rounded(run_all(options, execute))
        print(report.verdict(document))
        if options.json:
            path = result_path(options.json, document)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            print(f"written: {path}")
    if options.markdown == "-":
        print(report.markdown(document))
    elif options.markdown:
        Path(options.markdown).write_text(report.markdown(document) + "\n", encoding="utf-8")
    if options.figure:
        report.figure(document, options.figure)
    red = [row for row in document["rows"] + document.get("scaling", []) if row["gate"] in ("fail", "error")]
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
