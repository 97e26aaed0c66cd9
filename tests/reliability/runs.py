"""Small training runs, started as people start them, and what must be equal bit for bit where two ended alike."""

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from rohydr_fast import train
from rohydr_fast.data import containers
from rohydr_fast.errors import EXIT_SIGINT
from rohydr_fast.training.stages import StageRunner
from tests.small_data import small_tree
from tests.training.interrupting import signal_in_stage

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
COMMAND = [sys.executable, "-m", "rohydr_fast.train"]
RESULTS = ("metrics.jsonl", "table.md", "calibration.json", "predictions/*", "checkpoints/last/*", "checkpoints/best/*")
"""What depends on the settings and the seed alone."""


def small_run(folder: Path, epochs: int = 2) -> list[str]:
    """The options, but --out, of a run of a few seconds; its data file is written into `folder`."""
    data = folder / "data.npz"
    containers.write(small_tree(), str(data))
    settings = {"epochs": epochs, "steps": 2, "batch-size": 4, "patience": 0, "ema": 0.9}
    return ["--data", str(data), *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


def train_here(*options: str) -> tuple[int, str]:
    """Run the command in this process: its exit code and what it printed to stderr."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
        return train.main(list(options)), errors.getvalue()


def stop_here(stage: int, *options: str) -> None:
    """`train_here`, stopped by a signal in stage number `stage`."""
    with signal_in_stage(StageRunner, stage):
        code, errors = train_here(*options)
    assert code == EXIT_SIGINT, errors


def results(out: Path) -> dict[str, bytes]:
    """`RESULTS` of the run in `out`, by name."""
    paths = [path for pattern in RESULTS for path in out.glob(pattern)]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def assert_same(found: dict[str, bytes], expected: dict[str, bytes], where: str) -> None:
    """Whether two runs have the same `results`."""
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    assert not different, f"{where}: {', '.join(different)} differ from those of the unbroken run"
