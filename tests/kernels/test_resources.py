"""Many small calls leave nothing behind: no memory, no thread, no descriptor. Forks and exits at bad moments."""

import functools
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ops.gradient_cases import direction

from . import backward, cases, driver
from .loss_call import loss_term
from .valid_calls import LOOPS, PARAMETERS, Call

pytestmark = driver.needs_core

CALLS = 70_000  # of seven operations, three of them ways back, and of Eq. 3
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="no /proc to read memory and threads from"
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(rounds: Callable[[int], object], number: int, parts: int = 5) -> float:
    """Bytes by which `number` rounds make the process grow, from the median of equal parts of them.

    What leaks grows in each part. The system adds to one: it makes a large page of a tensor that another test left.
    """
    grown = []
    for _ in range(parts):
        before = resident()
        rounds(number // parts)
        grown.append(resident() - before)
    return statistics.median(grown) * parts


def threads_and_descriptors() -> tuple[int, int]:
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def small_calls(threads: int):
    """One function for each operation: the core with prepared arguments, which the function keeps alive."""
    functions = []
    for operation in PARAMETERS:
        values = tuple(Call(operation).values.values())
        arguments = ([values],) if operation in LOOPS else values
        functions.append(functools.partial(getattr(driver.CORE, operation), *arguments, threads))
    term = tuple(loss_term().values())
    return [*functions, functools.partial(driver.CORE.diffusion_loss, [term], threads)]


@needs_proc
@pytest.mark.parametrize("threads", [1, 3])
def test_many_calls_leave_nothing_behind(threads):
    functions = small_calls(threads)
    number = (
        CALLS if threads == 1 else CALLS // 5
    )  # waking a thread costs more than a small call, above all on one core
    refused = driver.CORE.cross_attention

    def calls(count: int) -> None:
        for turn in range(count):
            functions[turn % len(functions)]()
            if turn % 10 == 0:
                try:
                    refused(None, None, None, 1, None, None, threads)
                except ValueError:
                    pass

    calls(500)
    others = threads_and_descriptors()
    grown = growth(calls, number)
    assert grown < 2**20, f"{number} calls grew the process by {grown / 1024:.0f} KiB"
    assert threads_and_descriptors() == others


@needs_proc
def test_packing_again_and_again_leaves_nothing_behind(monkeypatch):
    arguments = cases.reverse_loop_case(2, largest_width=32, layers=2, steps=1, samples=1)

    def rounds(count: int) -> None:
        for turn in range(count):
            monkeypatch.setenv("ROHYDR_FAST_CPU", driver.ISAS[turn % len(driver.ISAS)])
            packed = driver.pack(arguments["weights"], arguments["num_heads"])
            packed.refresh()
            if turn % 10 == 0:
                driver.native("reverse_loop", arguments, packed=packed)

    rounds(100)
    assert growth(rounds, 1000) < 2**20


@needs_proc
def test_threads_of_callers_give_their_memory_back():
    """Each calling thread keeps a workspace; it must go with the thread."""
    arguments = cases.reverse_loop_case(3, largest_width=160, samples=6, tokens=70, layers=1, steps=1)

    def rounds(count: int) -> None:
        for _ in range(count):
            caller = threading.Thread(target=driver.native, args=("reverse_loop", arguments))
            caller.start()
            caller.join()

    rounds(30)
    others = threads_and_descriptors()
    assert growth(rounds, 150) < 4 * 2**20, "150 workspaces of about a megabyte each"
    for _ in range(100):  # a thread that was joined may still be on its way out of the system
        if threads_and_descriptors()[0] <= others[0]:
            break
        time.sleep(0.05)
    assert threads_and_descriptors()[0] <= others[0]


FORK = """
import os, sys
from tests.kernels import backward, cases, driver
from tests.ops.gradient_cases import direction
arguments = cases.reverse_loop_case(4, largest_width=32, samples=4, tokens=40, steps=2)
out_gradient = direction("reverse_loop", arguments)

def results(threads):
    found = backward.gradients("reverse_loop", arguments, out_gradient, threads=threads)
    return [driver.native("reverse_loop", arguments, threads=threads), *found.values()]

def same(threads):
    return all(driver.same_bits(*pair) for pair in zip(results(threads), expected, strict=True))

expected = results(1)
assert same(3)
for threads in (1, 3, 4):
    child = os.fork()
    if child == 0:
        os._exit(0 if all(same(t) for t in (threads, 1, 2)) else 7)
    assert os.waitpid(child, 0)[1] == 0, "the child computed something else, or ended otherwise"
    assert same(threads)
"""

# Short calls come back to Python while it ends; a long one is still computing then.
EXIT = """
import sys, threading, time
from tests.kernels import backward, cases, driver
from tests.ops.gradient_cases import direction
steps, tokens, threads = {sizes}
arguments = cases.reverse_loop_case(5, largest_width=64, samples=6, tokens=tokens, steps=steps, scale=0.3)
packed = driver.pack(arguments["weights"], arguments["num_heads"])
out = driver.Guarded(tuple(arguments["x"].shape), driver.torch.float32)
there = driver.chain_tuple(arguments, packed, out.array)
back = backward.WayBack("reverse_loop", arguments, direction("reverse_loop", arguments), kept=False).entry
started = threading.Event()

def run():
    started.set()
    while True:
        driver.CORE.reverse_loop([there], threads)
        driver.CORE.reverse_loop_backward([back], threads)

threading.Thread(target=run, daemon=True).start()
started.wait()
time.sleep({wait})
"""


# Seconds; a thread that waits for the GIL has one turn in such a call, a free one hundreds.
LONG_ENOUGH = 0.3


def run_script(script: str, root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)


@needs_fork
def test_a_child_computes_the_same_bits(repo_root):
    done = run_script(FORK, repo_root)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("steps", "tokens"), [(1, 1), (400, 70)], ids=["short calls", "a long call"])
def test_python_ends_while_a_daemon_thread_computes(steps, tokens, threads, repo_root):
    for wait in (0.0, 0.05):
        done = run_script(EXIT.format(sizes=(steps, tokens, threads), wait=wait), repo_root)
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-800:]}"
        assert done.stderr == ""


@pytest.mark.parametrize("threads", [1, 2])
def test_python_goes_on_while_gradients_are_computed(threads):
    """The GIL is released: this thread counts while another one is inside of the core."""
    for samples in (8 * 4**i for i in range(6)):
        turns, took = turns_during_gradients(samples, threads)
        if took > LONG_ENOUGH:
            break
    else:
        pytest.fail(f"the gradients of {samples} samples in {took:.3f} s: too short a call to tell")
    assert turns > took / 0.1, f"{turns} turns in {took:.2f} s"


def turns_during_gradients(samples: int, threads: int) -> tuple[int, float]:
    """How often this thread had its turn, a millisecond apart, during one call of so many seconds."""
    arguments = cases.reverse_loop_case(5, largest_width=64, samples=samples, tokens=70, steps=300, scale=0.3)
    call = backward.WayBack("reverse_loop", arguments, direction("reverse_loop", arguments), kept=False)
    finished, turns = threading.Event(), 0

    def compute() -> None:
        driver.CORE.reverse_loop_backward([call.entry], threads)
        finished.set()

    caller = threading.Thread(target=compute)
    start = time.perf_counter()
    caller.start()
    while not finished.is_set():
        time.sleep(0.001)
        turns += 1
    caller.join()
    return turns, time.perf_counter() - start
