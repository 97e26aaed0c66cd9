"""One command for a machine with a CUDA device and no network: build, test, check, then time the sampler on the device.

    python benchmarks/gpu.py --out DIR [--minutes 10] [--skip-build] [--skip-tests] [--skip-sanitizer]
                             [--workloads forward backward iteration] [--width 64 128] [--batch 1 32 132 256]
                             [--dtype bf16 fp32] [--providers eager compile graph triton cuda] [--commit NAME]

eager is PyTorch, compile and graph are torch.compile and a CUDA graph of its hoisted step, triton and cuda are this
package's kernels. forward samples x_0 in 50 steps, backward goes all the way back as well, iteration is the three
stages of a training batch. A contender is timed only after its answers were compared with float64 on the same noise,
at the timed sizes with fewer steps. DIR/gpu.json and DIR/gpu.md are written again after every cell, logs beside them.

Exit codes: 0; 1 when something failed, which the result names; 69 without a CUDA device.
"""

import argparse
import datetime
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gpu_setup
import torch
from gpu_budget import Budget
from gpu_parent import run_cells, worker_events
from gpu_problem import BATCHES, DTYPES, PROVIDERS, WIDTHS, WORKLOADS, Settings, cells
from gpu_report import Report

from rohydr_fast.doctor import environment
from rohydr_fast.errors import BackendUnavailable

BUILD_SHARE, TESTS_SHARE, SANITIZER_SHARE = 0.35, 0.3, 0.12
"""Of all minutes, what these may take at most."""


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for results and logs")
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything; default: 10")
    for name, what in (("build", "the build"), ("tests", "the gpu tests"), ("sanitizer", "compute-sanitizer")):
        parser.add_argument(f"--skip-{name}", action="store_true", help=f"leave out {what}")
    for name, kind, default in (
        ("workloads", str, WORKLOADS),
        ("width", int, WIDTHS),
        ("batch", int, BATCHES),
        ("dtype", str, tuple(DTYPES)),
        ("providers", str, PROVIDERS),
    ):
        choices = None if name == "batch" else default
        parser.add_argument(f"--{name}", type=kind, nargs="+", choices=choices, default=list(default))
    parser.add_argument("--commit", help="what to record, where the repository is not there or is another's")
    return parser


def check_device() -> None:
    """There must be a CUDA device.

    Raises:
        BackendUnavailable: there is none.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            f"benchmarks/gpu.py: torch {torch.__version__} must have a CUDA device, got none. Run it on a machine "
            "with an NVIDIA GPU and a CUDA build of torch."
        )


def facts(settings: Settings, commit: str | None) -> dict:
    """Device and versions."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    around = environment()
    return {
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else settings.device,
        "driver": gpu_setup.driver(),
        "CUDA": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton,
        "python": around["python"],
        "cpu": around["cpu"],
        "cores": around["cores_available"],
        "commit": commit or around["commit"],
        "dirty": around["dirty"],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "settings": asdict(settings),
    }


def prepare(options: argparse.Namespace, budget: Budget, report: Report) -> None:
    """Build, tests and sanitizer, as far as they are wanted; what fails is recorded, and the times are taken anyway."""
    phases = {
        "build": (lambda s: gpu_setup.build(options.out, torch.cuda.get_device_capability(), s), BUILD_SHARE),
        "tests": (lambda s: gpu_setup.run_tests(options.out, s), TESTS_SHARE),
        "sanitizer": (lambda s: gpu_setup.sanitize(options.out, s), SANITIZER_SHARE),
    }
    for name, (run, share) in phases.items():
        if getattr(options, f"skip_{name}"):
            report.set(**{name: {"status": "left out"}})
            continue
        found = run(budget.part(share))
        report.set(**{name: found})
        counts = ", ".join(f"{found[key]} {key}" for key in ("passed", "failed", "skipped") if key in found)
        report.show(f"{name}: {found['status']} {counts} {found.get('reason', '')}".rstrip())


def show(text: str) -> None:
    """A line of progress."""
    print(text, flush=True)


def main(argv: list[str] | None = None, settings: Settings | None = None, events: Callable | None = None) -> int:
    """Run everything.

    Args:
        settings: others than those of a device, for tests.
        events: runs a plan, by default in a process of its own, see `gpu_parent.run_cells`.
    """
    options = make_parser().parse_args(argv)
    budget, settings = Budget(60 * options.minutes), settings or Settings()
    if settings.device == "cuda":
        try:
            check_device()
        except BackendUnavailable as error:
            print(error, file=sys.stderr)
            return error.exit_code
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out, facts(settings, options.commit), show)
    prepare(options, budget, report)
    planned = cells(options.workloads, options.width, options.batch, options.dtype)
    events = events or partial(worker_events, log=options.out / "worker.log")
    run_cells(settings, planned, options.providers, budget, events, report)
    report.set(seconds=budget.seconds - budget.left())
    show(f"written: {options.out / 'gpu.json'} and gpu.md, {report.document['seconds']:.0f} s")
    return report.exit_code()


if __name__ == "__main__":
    sys.exit(main())
