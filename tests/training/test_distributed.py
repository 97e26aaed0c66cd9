"""Several processes train as one does: the same losses, gradients and weights. After a kill: tests.reliability."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from rohydr_fast.data import containers
from rohydr_fast.distributed import Processes, Team, joined, restarted, team
from tests.small_data import small_tree

from .torchrun import environment, run, steps, weights

SETTINGS = ["--epochs", "2", "--steps", "2", "--dropout", "0", "--batch-size", "7"]  # 10 clips: batches of 7 and 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "clips.npz"
    containers.write(small_tree(), str(path))
    return str(path)


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, ["--missing-rate", "a=0.2,t=0,v=0", "--ema", "0.9"]),  # in most batches one process misses nothing
        (4, ["--missing-rate", "mixed"]),  # the last batch leaves a process without a clip
        (2, ["--missing-rate", "0.5", "--strategy", "one-stage", "--method", "regress"]),
    ],
    ids=["little missing", "an empty part", "one stage"],
)
def test_they_compute_what_one_process_computes(data, tmp_path, processes, settings):
    for number, place in ((1, "alone"), (processes, "together")):
        done = run(number, "--data", data, "--out", str(tmp_path / place), *SETTINGS, *settings)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\nrun: ") == 1, "every process prints"
    alone, together = (steps(tmp_path / place) for place in ("alone", "together"))
    assert [list(row) for row in alone] == [list(row) for row in together]
    for one, other in zip(alone, together, strict=True):
        if one["kind"] == "step":
            numbers = [{name: value for name, value in row.items() if name != "kind"} for row in (one, other)]
            assert numbers[0] == pytest.approx(numbers[1], rel=2e-5, abs=1e-6)
        else:
            assert one["realised_missing_rate"] == other["realised_missing_rate"]
    before, after = weights(tmp_path / "alone"), weights(tmp_path / "together")
    for name in ("recovery.hddm.a.norm.mean", "recovery.norm.a.mean"):
        if name in before:
            torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-5)
    # Adam divides by the gradient's size: rounding decides where a parameter with none goes. Most have some.
    moved = torch.cat(
        [(before[name] - after[name]).flatten().abs() for name in before if before[name].is_floating_point()]
    )
    assert (moved < 1e-5).float().mean() > 0.95 and moved.max() < 0.05


def test_evaluation_and_sampling_are_shared_out(data, tmp_path):
    out = tmp_path / "run"
    assert run(1, "--data", data, "--out", str(out), "--missing-rate", "mixed", *SETTINGS).returncode == 0
    found = {}
    for processes in (1, 2):
        done = run(processes, str(out), "--protocol", "fixed", "--samples", "2", "--json", module="evaluate")
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        place = tmp_path / f"{processes}.safetensors"
        arguments = [data, "--model", str(out), "--available", "a", "--samples", "2", "--out", str(place)]
        done = run(processes, *arguments, module="sample")
        assert done.returncode == 0, done.stderr
        found[processes] = json.loads(lines[0]), place.read_bytes()
        assert len(lines) == 1, "every process prints"
    assert found[1] == found[2]


TWO_TEAMS = """
import os
from rohydr_fast.distributed import joined

for _ in range(2):
    with joined() as team:
        import torch._dynamo  # what a command imports meanwhile: much of torch keeps the group that it finds
        found = team.gather(team.rank)
threads = [open(f"/proc/self/task/{number}/comm").read().strip() for number in os.listdir("/proc/self/task")]
print(f"{found} {[name for name in threads if 'gloo' in name]}\\n", end="")  # in one piece
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find the threads")
def test_a_team_leaves_no_thread_and_can_be_joined_again(tmp_path):
    """A thread of gloo that is still there when the interpreter ends may abort the process."""
    script = tmp_path / "two_teams.py"
    script.write_text(TWO_TEAMS)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["None []", "[0, 1] []"]


def test_what_cannot_be_shared_is_refused(data, tmp_path):
    done = run(2, "--data", data, "--out", str(tmp_path / "run"), "--method", "smcmsa", *SETTINGS)
    assert done.returncode != 0 and "cannot be trained by several processes, got 2" in done.stderr
    done = run(2, "--data", data, *SETTINGS)
    assert done.returncode != 0 and "--out: must be given for several processes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_alone_nothing_is_divided():
    alone, rows = Team(), np.arange(5)
    assert alone.leads and alone.part(rows)[0] is rows and alone.shares([3, 0]) == [1.0, 1.0]
    values = torch.ones(3)
    assert alone.sum(values) is values and alone.tell("x") == "x" and alone.gather("x") == ["x"]
    with joined() as found:
        assert found is team() and found.size == 1
    assert not restarted()


@pytest.mark.parametrize("clips", [1, 2, 3, 10])
def test_every_row_has_one_process(clips):
    parts = [Processes(rank, 3).part(np.arange(clips)) for rank in range(3)]
    assert np.concatenate([rows for rows, counts in parts if counts]).tolist() == list(range(clips))
    assert all(len(rows) > 0 for rows, _ in parts)
