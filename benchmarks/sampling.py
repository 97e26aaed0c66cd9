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
import sys
from collections.abc import Callable

import command
import report
from documents import collect, document
from presets import PRESETS
from processes import in_process
from sampling_cell import run_cell
from sampling_problem import PREDICTION
from sampling_providers import PROVIDERS


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
    """Run one cell in a process of its own; where that ends badly, every row says so."""
    found, reason = in_process(__file__, cell)
    if found is not None:
        return found
    keys = {key: cell.get(key) for key in ("preset", "batch", "threads", "steps")}
    failed = [{**keys, "provider": name, "gate": "error", "reason": reason} for name in cell["providers"]]
    return {"scaling" if cell["kind"] == "scaling" else "rows": failed, "probes": [], "isa": None}


def run_all(options: argparse.Namespace, execute: Callable[[dict], dict]) -> dict:
    """The document of a run."""
    results, probed = collect(cells(options), execute, report.line)
    rows = {"rows": [row for found in results for row in found.get("rows", [])]}
    if options.ragged:
        rows["scaling"] = [row for found in results for row in found.get("scaling", [])]
    settings = {"steps": options.steps, "dtype": "float32", "prediction": PREDICTION}
    return document("sampling", settings, probed, **rows)


def main(argv: list[str] | None = None, execute: Callable[[dict], dict] = in_subprocess) -> int:
    """Run or read, write what was asked for; 1 when a contender was wrong or broke, else 0."""
    parser = command.make_parser(
        __doc__.splitlines()[0],
        "sampling",
        presets=list(PRESETS),
        batch=[1, 32],
        providers=list(PROVIDERS),
        rounds="as many as take 90 s, between 7 and 30",
    )
    parser.add_argument("--ragged", action="store_true", help="also how cost grows with tokens, keys, batch and steps")
    parser.set_defaults(providers=list(PROVIDERS))
    options = parser.parse_args(argv)
    return command.run(options, run_cell, lambda: run_all(options, execute), report)


if __name__ == "__main__":
    sys.exit(main())
