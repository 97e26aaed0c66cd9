"""Jobs side by side in processes of their own: skipped when done, gone on with when broken, never overwritten."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from ..config import TrainConfig
from ..data.dataset import Dataset
from ..errors import MethodUnavailable, RohydrError, UsageError
from ..evaluation.runs import evaluate_run
from ..ops.registry import backend
from ..training import experiment
from ..training.interrupt import Interrupted, StopRequest
from ..training.run_directory import CONFIG, RunDirectory
from .plan import Job

DONE, SKIPPED, UNAVAILABLE, FAILED, STOPPED = "done", "skipped", "not available", "failed", "stopped"


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    name: str
    state: str  # DONE, SKIPPED, UNAVAILABLE, FAILED or STOPPED
    seconds: float = 0.0
    sentence: str = ""  # of an error


def is_done(job: Job, out: Path) -> bool:
    """Whether the job's directory holds its result and all its evaluations.

    Raises:
        UsageError: it holds a run with other settings.
    """
    place = out / job.name
    if not (place / CONFIG).is_file():
        return False
    check_same(job, RunDirectory.open(place))
    needed = [place / "metrics.json", *(place / "evaluations" / f"{asked.name}.json" for asked in job.evaluations)]
    return all(path.is_file() for path in needed)


def check_same(job: Job, run: RunDirectory) -> None:
    """A directory that is taken must hold the job's run: nothing is overwritten, nothing mistaken for another.

    Raises:
        UsageError: its settings differ; the sentence names the first.
    """
    there, wanted = run.read_config(), asdict(job.config)
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise UsageError(
                f"{run.path}: must hold a run with {name} = {wanted.get(name)!r}, got one with {there.get(name)!r}. "
                "Use another --out, or remove that directory."
            )


def run_job(job: Job, out: Path, threads: int) -> Outcome:
    """Train and evaluate, or go on where it broke off; an error becomes a sentence, a signal leaves a checkpoint."""
    import torch

    torch.set_num_threads(threads)
    started, place = time.perf_counter(), out / job.name
    state, sentence = DONE, ""
    try:
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # progress of several runs at once: nobody's
            _train_and_evaluate(job, place)
    except MethodUnavailable as error:
        state, sentence = UNAVAILABLE, str(error)
    except Interrupted:
        state = STOPPED
    except (RohydrError, OSError) as error:
        state, sentence = FAILED, str(error)
    return Outcome(job.name, state, time.perf_counter() - started, sentence)


def _train_and_evaluate(job: Job, place: Path) -> None:
    dataset = _dataset(job.config)
    if not (place / CONFIG).is_file():
        experiment.start(job.config, place, dataset)
    elif not (place / "metrics.json").is_file():
        experiment.resume(place, dataset)
    with backend(job.config.backend):
        for asked in job.evaluations:
            if not (place / "evaluations" / f"{asked.name}.json").is_file():
                evaluate_run(place, asked, dataset=dataset)


_datasets: dict[tuple, Dataset] = {}


def _dataset(config: TrainConfig) -> Dataset:
    """Read once in a process."""
    key = (config.data, config.nonfinite, config.folds, config.fold)
    if key not in _datasets:
        _datasets.clear()
        _datasets[key] = experiment.read_dataset(config)
    return _datasets[key]


def execute(jobs: Sequence[Job], out: Path, workers: int, report: Callable[[Outcome, int], None]) -> list[Outcome]:
    """Run all jobs that are not done, `workers` at a time; `report(outcome, jobs left)` after each.

    On Ctrl-C or SIGTERM the jobs under way save a checkpoint, and no other starts: the same call goes on later.

    Raises:
        UsageError: a directory holds another run; before anything starts.
    """
    done = [is_done(job, out) for job in jobs]
    out.mkdir(parents=True, exist_ok=True)
    outcomes = [Outcome(job.name, SKIPPED) for job, finished in zip(jobs, done, strict=True) if finished]
    waiting = [job for job, finished in zip(jobs, done, strict=True) if not finished]
    workers = max(1, min(workers, len(waiting)))
    threads = max(1, (os.cpu_count() or 1) // workers)
    with StopRequest() as stop, _Pool(workers) as pool:
        running: dict[Future, Job] = {}
        while waiting or running:
            while waiting and len(running) < workers and stop.signal_number is None:
                job = waiting.pop(0)
                running[pool.submit(run_job, job, out, threads)] = job
            if not running:
                break
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            if stop.signal_number is not None:
                pool.stop(stop.signal_number)
            for future in finished:
                outcome = _outcome(future, running.pop(future))
                outcomes.append(outcome)
                report(outcome, len(waiting) + len(running))
    outcomes += [Outcome(job.name, STOPPED) for job in waiting]
    if stop.signal_number is not None:
        raise Interrupted(
            f"stopped on a signal; {sum(o.state in (DONE, SKIPPED) for o in outcomes)} of {len(jobs)} runs are done "
            "and the others keep their checkpoints. Go on with the same command.",
            stop.signal_number,
        )
    return outcomes


def _outcome(future: Future, job: Job) -> Outcome:
    error = future.exception()
    if error is None:
        return future.result()
    return Outcome(job.name, FAILED, sentence=f"the process ended without a result ({error or type(error).__name__}).")


class _Pool(ProcessPoolExecutor):
    """Processes that do not share what torch holds; a signal is passed on to them once."""

    def __init__(self, workers: int):
        super().__init__(workers, mp_context=get_context("spawn"), initializer=_leave_ctrl_c)
        self._told = False

    def stop(self, number: int) -> None:
        if not self._told:
            self._told = True
            for pid in list(self._processes):
                os.kill(pid, signal.SIGTERM)


def _leave_ctrl_c() -> None:
    """A terminal sends Ctrl-C to every process: the parent says when to stop, so that nobody is told twice."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
