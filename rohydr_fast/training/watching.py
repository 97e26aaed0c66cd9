"""What can be looked at while a run trains: curves for TensorBoard, and a profile of its first steps."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .run_directory import RunDirectory

WAIT, WARM_UP, ACTIVE = 1, 1, 3
"""Batches that a profile leaves out, runs without keeping, and keeps."""


@dataclass(frozen=True)
class Watch:
    """What was asked for; none of it changes a run."""

    tensorboard: bool = False
    profile: bool = False

    def check(self) -> None:
        """Whether it can be had here.

        Raises:
            UsageError: TensorBoard is not installed.
        """
        if self.tensorboard:
            try:
                import tensorboard  # noqa: F401
            except ImportError:
                raise UsageError(
                    '--tensorboard: needs tensorboard. Install it with: pip install "rohydr_fast[board]"'
                ) from None


NOTHING = Watch()


@contextmanager
def watched(run: RunDirectory, watch: Watch) -> Iterator[None]:
    """Inside, every row that `run` logs is watched; files go to ``tensorboard/`` and ``profile/`` in its directory."""
    with ExitStack() as stack:
        if watch.tensorboard:
            run.watchers.append(stack.enter_context(_curves(run)))
        if watch.profile:
            run.watchers.append(stack.enter_context(_profile(run.path / "profile")))
        try:
            yield
        finally:
            run.watchers.clear()


@contextmanager
def _curves(run: RunDirectory) -> Iterator:
    """A function that writes the numbers of a row as points: ``step/S1``, ``train/S1``, ``valid/MAE``."""
    from torch.utils.tensorboard import SummaryWriter

    step = sum(row["kind"] == "step" for row in run.rows())

    def add(row: Mapping) -> None:
        nonlocal step
        if row["kind"] == "step":
            step += 1
        groups = {"step": row} if row["kind"] == "step" else {name: row[name] for name in ("train", "valid")}
        for group, values in groups.items():
            for name, value in values.items():
                if isinstance(value, float):
                    writer.add_scalar(f"{group}/{name}", value, step)

    # What a run that was broken off has written after its checkpoint is dropped from the curves.
    with SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1 if step else None) as writer:
        yield add


@contextmanager
def _profile(folder: Path) -> Iterator:
    """A function that counts batches for torch's profiler, which writes ``trace.json`` and ``table.txt``."""
    import torch
    from torch.profiler import ProfilerActivity, profile, schedule

    def keep(found) -> None:
        folder.mkdir(exist_ok=True)
        found.export_chrome_trace(str(folder / "trace.json"))
        order = "self_cuda_time_total" if torch.cuda.is_initialized() else "self_cpu_time_total"
        (folder / "table.txt").write_text(found.key_averages().table(sort_by=order, row_limit=60))

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_initialized() else [])]
    plan = schedule(wait=WAIT, warmup=WARM_UP, active=ACTIVE, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=keep) as profiler:
        yield lambda row: profiler.step() if row["kind"] == "step" else None


@contextmanager
def span(name: str) -> Iterator[None]:
    """A named range in a profile, and for NVIDIA's tools (NVTX) where CUDA is in use."""
    import torch

    nvtx = torch.cuda.nvtx.range(name) if torch.cuda.is_initialized() else nullcontext()
    with torch.profiler.record_function(name), nvtx:
        yield
