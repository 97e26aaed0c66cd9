"""How fast a training step is, and how much memory it needs: the fused way back against PyTorch's autograd.

    python benchmarks/training.py [--workload block chain iteration epoch] [--preset paper] [--batch 32] [--threads 1 2]
                                  [--steps 50] [--providers naive reference checkpointed compile cpp] [--rounds N]
                                  [--lengths full|mosi] [--clips N] [--json FILE|DIR] [--markdown FILE|-]
                                  [--figure FILE.svg|png]
    python benchmarks/training.py --from FILE.json [--markdown FILE|-] [--figure FILE.svg|png]

block: Eq. 3 of two missing modalities, forward and back, each clip at its own step. chain: the reverse chains of both,
all K steps forward and back. iteration: the three stages of a training batch of the whole model, two modalities missing
of each clip, with the optimizer steps. epoch: the Trainer on as many clips as MOSI has, and which part takes how long.

A contender is timed only after its losses and gradients were compared with float64 autograd; one that is wrong gets no
time, and the exit code is 1. benchmarks/measure.py says how times are taken, benchmarks/memory.py the peak memory.
"""

import argparse
import sys
from collections.abc import Callable

import command
import training_report as report
from documents import collect, document
from processes import in_process
from training_cell import measure_cell, run_cell
from training_iteration import LENGTHS
from training_problem import PREDICTION
from training_providers import CHOICES, WORKLOADS, contenders

MOSI_CLIPS = 1284


def cells(options: argparse.Namespace) -> list[dict]:
    """What is compared with each other."""
    return [
        {
            "workload": workload,
            "preset": preset,
            "batch": batch,
            "threads": threads,
            "steps": options.steps,
            "lengths": options.lengths if workload in ("iteration", "epoch") else "full",
            "clips": options.clips,
            "rounds": options.rounds,
            "providers": contenders(workload, options.providers),
        }
        for threads in options.threads
        for preset in options.preset
        for batch in options.batch
        for workload in options.workload
    ]


def in_subprocess(cell: dict) -> dict:
    """Run the memory or the timing part of a cell in a process of its own; where that ends badly, it says so."""
    found, reason = in_process(__file__, cell)
    if found is not None:
        return found
    if cell["kind"] == "memory":
        return {"error": reason}
    rows = [{"provider": name, "gate": "error", "reason": reason} for name in cell["providers"]]
    return {"rows": rows, "probes": [], "isa": None}


def run_all(options: argparse.Namespace, execute: Callable[[dict], dict]) -> dict:
    """The document of a run."""
    results, probed = collect(cells(options), lambda cell: measure_cell(cell, execute), report.line)
    settings = {"steps": options.steps, "dtype": "float32", "prediction": PREDICTION, "clips": options.clips}
    return document("training", settings, probed, rows=[row for found in results for row in found["rows"]])


def main(argv: list[str] | None = None, execute: Callable[[dict], dict] = in_subprocess) -> int:
    """Run or read, write what was asked for; 1 when a contender was wrong or broke, else 0."""
    parser = command.make_parser(
        __doc__.splitlines()[0],
        "training",
        presets=["paper"],
        batch=[32],
        providers=list(CHOICES),
        rounds="as many as take 90 s, between 3 and 30; of an epoch 1",
    )
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS[:3]), metavar="WORKLOAD")
    parser.add_argument(
        "--lengths",
        choices=list(LENGTHS),
        default="full",
        help="real tokens of clips: all, or as many as in MOSI, a third",
    )
    parser.add_argument("--clips", type=int, default=MOSI_CLIPS, help="training clips of an epoch")
    options = parser.parse_args(argv)
    return command.run(options, run_cell, lambda: run_all(options, execute), report)


if __name__ == "__main__":
    sys.exit(main())
