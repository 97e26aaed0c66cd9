"""Gradients are computed on the threads that torch has already: no others start, and forks, limits and the caller's
floating-point environment are respected."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import driver

pytestmark = [
    driver.needs_core,
    pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info(), reason="this torch has no OpenMP"),
]

START = """
import os, torch
from tests.kernels import backward, cases, driver
from tests.ops.gradient_cases import direction

arguments = cases.reverse_loop_case(4, largest_width=32, samples=4, tokens=40, steps=2)
out_gradient = direction("reverse_loop", arguments)

def results(threads):
    return list(backward.gradients("reverse_loop", arguments, out_gradient, threads=threads).values())

def same(threads):
    return all(driver.same_bits(*pair) for pair in zip(results(threads), expected, strict=True))

def large_operation():
    return float(torch.ones(2_000_000).mul(2).sum())

expected = results(1)
"""

LAYERS = """
from tests.ops import test_conditioning as conditioning
layers = conditioning.case(rows=300, inputs=40, width=60, samples=50, keys=40, requires_grad=True)

def same_layers(threads):
    torch.set_num_threads(threads)
    return all(map(torch.equal, conditioning.gradients(layers, "cpp"), of_layers))

torch.set_num_threads(1)
of_layers = conditioning.gradients(layers, "cpp")
"""


def run(script: str, root: Path, **environment: str) -> None:
    command, settings = [sys.executable, "-c", START + script], {**os.environ, **environment}
    done = subprocess.run(command, cwd=root, env=settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr or f"exit code {done.returncode}"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this platform does not list a process's threads")
def test_no_other_threads_start(repo_root):
    script = """
torch.set_num_threads(4)
large_operation()
before = len(os.listdir("/proc/self/task"))
assert same(4)
assert len(os.listdir("/proc/self/task")) <= before >= 4
"""
    run(script, repo_root, OMP_NUM_THREADS="4")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_child_can_use_the_core_and_torch(repo_root):
    """Without a word before the fork, the child of a process that used OpenMP would wait for threads it has not."""
    script = """
import signal
torch.set_num_threads(3)
assert large_operation() == 4_000_000 and same(3)
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if same(3) and large_operation() == 4_000_000 and same(2) else 7)
    assert os.waitpid(child, 0)[1] == 0, "the child computed something else, or waited in vain"
    assert same(3) and large_operation() == 4_000_000
"""
    run(script, repo_root, OMP_NUM_THREADS="3")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_child_of_a_process_that_used_torch_alone(repo_root):
    """Nobody told OpenMP of this fork: the core does not wait for its threads."""
    script = """
import signal
torch.set_num_threads(3)
large_operation()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if same(3) and same(2) else 7)
assert os.waitpid(child, 0)[1] == 0, "the child computed something else, or waited in vain"
"""
    run(script, repo_root, OMP_NUM_THREADS="3")


@pytest.mark.parametrize("setting", [dict(OMP_THREAD_LIMIT="2"), dict(OMP_DYNAMIC="true"), dict(OMP_NUM_THREADS="1")])
def test_fewer_threads_than_asked_for(setting, repo_root):
    check = "assert all(same(threads) and same_layers(threads) for threads in (2, 3, 5, 2))"
    run(LAYERS + check, repo_root, **setting)


def test_the_floating_point_environment_is_the_callers(repo_root):
    """Subnormal numbers are flushed to zero on every thread or on none; afterwards the threads do as before."""
    script = """
out_gradient = out_gradient * 1e-40
torch.set_num_threads(3)
large_operation()  # threads that start now have the environment of now
kept = results(1)
assert any(bool((x != 0).any()) and float(x.abs().max()) < 1e-38 for x in kept)
for flush in (False, True):
    assert torch.set_flush_denormal(flush)
    expected = results(1)
    assert same(3)
    assert any(not driver.same_bits(*pair) for pair in zip(expected, kept, strict=True)) == flush
torch.set_flush_denormal(False)
assert float(torch.full((2_000_000,), 1e-40).mul(1).min()) > 0
"""
    run(script, repo_root, OMP_NUM_THREADS="3")
