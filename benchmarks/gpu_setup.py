"""What benchmarks/gpu.py does before it measures: the build, the tests of the device, compute-sanitizer, and facts."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from gpu_parent import ROOT, environment, stop

SANITIZERS = ("memcheck", "racecheck", "synccheck")
MARK = re.compile(r"mark\.gpu|pytestmark = gpu")


def run_logged(command: list[str], log: Path, seconds: float, **variables: str) -> tuple[int | None, float]:
    """Run in the checkout, all output in a file; the exit code, None where time ran out, and the seconds it took."""
    start = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment() | variables,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            stop(process)
            code = None
    return code, time.monotonic() - start


def build(folder: Path, capability: tuple[int, int], seconds: float) -> dict:
    """Build the native core with CUDA, for this device alone: "status", "seconds", "log"."""
    major, minor = capability
    architecture = f"{major}{minor}{'a' if major >= 9 else ''}-real"
    log = folder / "build.log"
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    code, spent = run_logged(command, log, seconds, CUDAARCHS=architecture, ROHYDR_FAST_BUILD="cuda")
    return _outcome(code, spent, log, seconds) | {"architecture": architecture}


def run_tests(folder: Path, seconds: float) -> dict:
    """Run the tests that need a device, those of Triton last: counts, and the ids of those that failed."""
    log = folder / "tests.log"
    code, spent = run_logged([sys.executable, "-m", "pytest", "-m", "gpu", "-v", *test_files()], log, seconds)
    text = log.read_text(encoding="utf-8", errors="replace")
    return _outcome(code, spent, log, seconds) | test_counts(text)


def test_files() -> list[str]:
    """Files with tests that need a device, from the checkout on: the others may need what a machine for it lacks."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if MARK.search(path.read_text(encoding="utf-8"))]
    files.sort(key=lambda path: ("triton" in str(path), str(path)))
    return [str(path.relative_to(ROOT)) for path in files]


def test_counts(text: str) -> dict:
    """Of a verbose run of pytest, whether it came to its end or not."""
    outcomes = re.findall(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", text, re.M)
    counts = {word.lower(): sum(found == word for _, found in outcomes) for word in ("PASSED", "FAILED", "SKIPPED")}
    counts["failed"] += sum(found == "ERROR" for _, found in outcomes)
    return counts | {"failures": [name for name, found in outcomes if found in ("FAILED", "ERROR")]}


def sanitize(folder: Path, seconds: float) -> dict:
    """compute-sanitizer's tools on the whole loop; {"status": "not present"} where there is none."""
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        return {"status": "not present"}
    found, end = {}, time.monotonic() + seconds
    for place, tool in enumerate(SANITIZERS):
        log = folder / f"{tool}.log"
        share = max(1.0, (end - time.monotonic()) / (len(SANITIZERS) - place))
        script = str(Path(__file__).with_name("gpu_sanitized.py"))
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, script]
        # Every tensor has an allocation of its own then, and what lies beyond its end is nobody's.
        code, spent = run_logged(command, log, share, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        text = log.read_text(encoding="utf-8", errors="replace")
        summary = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: .*)$", text, re.M)
        found[tool] = _outcome(code, spent, log, share) | {"summary": summary[-1] if summary else None}
    statuses = {one["status"] for one in found.values()}
    worst = next((status for status in ("failed", "timed out") if status in statuses), "passed")
    return {"status": worst, "tools": found}


def _outcome(code: int | None, spent: float, log: Path, seconds: float) -> dict:
    outcome = {"status": "passed" if code == 0 else "failed", "seconds": spent, "log": log.name}
    if code is None:
        outcome |= {"status": "timed out", "reason": f"stopped after {seconds:.0f} s"}
    elif code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        outcome |= {"reason": f"code {code}: {lines[-1] if lines else 'no output'}"[:300]}
    return outcome


def driver() -> str | None:
    """The version of NVIDIA's driver; None where nvidia-smi does not say."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None
