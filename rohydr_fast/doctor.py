"""What this installation is and what it can run: ``python -m rohydr_fast.doctor [--json]``."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from . import __version__, _native
from .ops.registry import OPS, explain


def environment() -> dict:
    """The facts that a result depends on, as a JSON object.

    Versions (None where a package is missing), the commit of the checkout and whether it differs from it (None outside
    a checkout), operating system, CPU, cores and threads. Loads torch to ask it for its threads and devices; why that
    failed is in "torch_error".
    """
    commit, dirty = _checkout()
    return {
        "rohydr_fast": __version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_available": _cores_available(),
        **_torch_facts(),
    }


def report() -> dict:
    """`environment`, what the build recorded, and for every operation the verdict on each backend."""
    usable, reason = _native.status()
    return {
        "environment": environment(),
        "native": {"usable": usable, "reason": reason},
        "build": _native.build_info(),
        "backends": {
            op: {
                "selected": explanation.selected,
                "how": explanation.how,
                "table": [{"backend": b, "usable": ok, "reason": why} for b, ok, why in explanation],
            }
            for op, explanation in ((op, explain(op)) for op in OPS)
        },
    }


def main(argv: list[str] | None = None) -> int:
    """Print the report; the exit code is 0 whatever the verdicts are."""
    from .cli import make_parser, run  # its parser need not be there for those who ask for `environment` alone

    parser = make_parser("rohydr_fast.doctor", "Versions, machine, build and the backends that can run here.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return run(parser, _command, argv)


def _command(options) -> int:
    from .cli import print_json

    document = report()
    if options.json:
        print_json(document)
        return 0
    facts, build = document["environment"], document["build"]
    state = {None: "", True: " with local changes", False: ""}[facts["dirty"]]
    lines = [
        ("rohydr_fast", f"{facts['rohydr_fast']}, commit {facts['commit'] or 'unknown'}{state}"),
        ("python", f"{facts['python']} on {facts['platform']}"),
        ("torch", facts["torch_error"] or f"{facts['torch']}, {facts['threads']} threads"),
        ("numpy", facts["numpy"] or "not installed"),
        ("cpu", f"{facts['cpu']}, {facts['cores_available']} of {facts['cores']} cores available"),
        ("cuda devices", ", ".join(facts["cuda_devices"]) or "none that this torch can use"),
        ("native core", document["native"]["reason"]),
    ]
    if build:
        cuda = f"CUDA {build.get('cuda_version')} for {build.get('cuda_architectures')}" if build["cuda"] else "no CUDA"
        lines.append(("build", f"{build.get('compiler', 'no compiler')}, {cuda} ({build['cuda_reason']})"))
    for name, value in lines:
        print(f"{name:<13}{value}")
    for op in OPS:
        print(f"\n{explain(op)}")
    return 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _checkout() -> tuple[str | None, bool | None]:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain")
    return commit or None, None if changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cores_available() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _torch_facts() -> dict:
    facts = {"torch": _version("torch"), "torch_error": None, "threads": None, "cuda_devices": []}
    try:
        import torch
    except (ImportError, OSError) as error:  # a report must survive a torch that is missing or broken
        return facts | {"torch_error": f"{type(error).__name__}: {error}"}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(index) for index in range(count)]
    return facts | {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "cuda_devices": names}


if __name__ == "__main__":
    sys.exit(main())
