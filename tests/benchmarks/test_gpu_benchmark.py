"""The benchmark of a CUDA device, on the CPU: its parts, its budget, its report, and a small run from end to end."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIBLINGS = (
    "gpu",
    "gpu_backward",
    "gpu_budget",
    "gpu_cell",
    "gpu_gate",
    "gpu_parent",
    "gpu_problem",
    "gpu_providers",
    "gpu_report",
    "gpu_setup",
    "gpu_timing",
    "gpu_worker",
    "training_iteration",
)

needs_no_device = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture(scope="module")
def bench():
    """The scripts of benchmarks/, which import each other as neighbours, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in SIBLINGS})


@pytest.fixture
def tiny(bench, one_thread):
    return bench.gpu_problem.Settings(
        device="cpu",
        steps=2,
        blocks=1,
        tokens=5,
        keys=6,
        channels=4,
        gate_steps=2,
        gradient_gate_steps=2,
        slice_seconds=0.0,
        peak_size=32,
    )


def in_this_process(bench):
    """What a worker writes, without a worker."""

    def events(plan):
        found = []
        bench.gpu_worker.work(plan, lambda event: found.append(json.loads(json.dumps(event))))
        return iter(found)

    return events


SKIPS = ["--skip-build", "--skip-tests", "--skip-sanitizer"]


def run(bench, tiny, folder, *options) -> tuple[int, dict, str]:
    given = ["--out", str(folder), *SKIPS, "--batch", "2", "--commit", "abc", *options]
    code = bench.gpu.main(given, tiny, in_this_process(bench))
    return code, json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()


def test_a_small_run_gates_times_and_reports_every_contender(bench, tiny, tmp_path, capsys):
    options = ["--width", "64", "--providers", "eager", "graph", "triton", "cuda", "--workloads", "forward", "backward"]
    code, document, text = run(bench, tiny, tmp_path, *options)
    rows = {(r["workload"], r["dtype"], r["provider"]): r for r in document["rows"]}
    assert code == 0 and len(rows) == len(document["rows"]) == 2 * 2 * 4
    for (workload, dtype, provider), row in rows.items():
        if provider in ("triton", "cuda"):
            assert row["gate"] == "skipped" and "CUDA" in row["reason"] and "Usable" not in row["reason"]
            continue
        assert row["gate"] == "pass", row
        assert len(row["errors"]) == (2 if workload == "backward" else 1)
        assert row["errors"][0] < (1e-5 if dtype == "fp32" else 0.1)
        assert row["us_per_step"]["median"] > 0 and row["call_us_per_step"]["median"] > 0 and row["repetitions"] >= 5
        assert row["share_of_tensor_peak"] > 0 and row["share_of_l2"] is None
    assert document["peaks"]["tensor_flops"].keys() == {"bf16", "fp32"} and document["commit"]
    assert "| W | B | dtype | eager | graph | triton | cuda |" in text and "skipped (1)" in text and "\n1. " in text
    assert "forward   W=64  B=2   bf16 eager" in capsys.readouterr().out


def test_a_training_iteration_on_a_device_is_gated_and_timed(bench, tiny, tmp_path):
    options = ["--width", "64", "--workloads", "iteration", "--providers", "eager", "graph", "cuda", "--batch", "3"]
    code, document, text = run(bench, tiny, tmp_path, *options)
    eager, graph, cuda = document["rows"]
    assert code == 0 and eager["gate"] == "pass" and eager["seconds"]["median"] > 0, eager
    assert graph["gate"] == "skipped" and "iteration" in graph["reason"]
    assert cuda["gate"] == "skipped" and "CUDA" in cuda["reason"] and "## iteration" in text


def test_an_iteration_keeps_its_ids_on_the_cpu_and_moves_the_rest(bench, tiny):
    iteration = bench.training_iteration.Iteration(tiny.preset(64), 3, 1, "full")
    moved = iteration.on("meta")
    assert moved.batch.sample_id.device.type == "cpu" and moved.batch.label.device.type == "meta"
    tensors = [*moved.batch.x.values(), *moved.batch.lengths.values(), moved.batch.missing, moved.batch.present]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {p.device.type for p in moved.runner.model.parameters()} == {"meta"}
    assert iteration.batch.label.device.type == "cpu"


def test_a_wrong_contender_gets_no_time(bench, tiny, tmp_path, monkeypatch):
    build = bench.gpu_cell.build_forward

    def wrong(name, problem, few):
        made = build(name, problem, few)
        if name != "graph":
            return made
        return bench.gpu_providers.Contender(lambda: {"x_0": 1.5 * made.check()["x_0"]}, made.queued, made.whole)

    monkeypatch.setattr(bench.gpu_cell, "build_forward", wrong)
    options = ["--width", "64", "--dtype", "fp32", "--providers", "eager", "graph", "--workloads", "forward"]
    code, document, _ = run(bench, tiny, tmp_path, *options)
    eager, graph = document["rows"]
    assert code == 1 and eager["gate"] == "pass"
    assert graph["gate"] == "fail" and "x_0 is off by" in graph["reason"] and "us_per_step" not in graph


def test_without_time_every_row_says_so(bench, tiny, tmp_path):
    code, document, text = run(bench, tiny, tmp_path, "--minutes", "0", "--providers", "eager", "cuda")
    assert code == 0 and len(document["rows"]) == (2 * 2 * 2 + 1) * 2
    assert {(row["gate"], row["reason"]) for row in document["rows"]} == {("not run", "out of time")}
    assert "out of time" in text


def test_nobody_begins_what_would_take_longer_than_what_is_left(bench):
    now = [0.0]
    budget = bench.gpu_budget.Budget(100.0, lambda: now[0])
    slices = bench.gpu_budget.Slices(budget)
    assert slices.refusal("forward", "eager") is None and slices.refusal("forward", "compile") is None
    slices.spent("forward", "compile", 15.0)
    assert "share of 25%" in slices.refusal("forward", "compile")
    slices.spent("forward", "eager", 30.0)
    now[0] = 75.0
    assert budget.left() == 25 and budget.part(0.1) == 10 and budget.part(0.5) == 25
    assert slices.refusal("forward", "eager") == "out of time" and slices.refusal("forward", "graph") is None
    now[0] = 101.0
    assert budget.left() == 0 and slices.refusal("forward", "graph") == "out of time"


class Collected:
    def __init__(self):
        self.rows, self.found = [], None

    def peaks(self, found):
        self.found = found

    def add(self, rows):
        self.rows += rows


def test_a_contender_that_ends_its_process_is_left_out_and_the_others_go_on(bench):
    problem = bench.gpu_problem
    cells, plans = [problem.Cell("forward", 64, b, "bf16") for b in (1, 32)], []

    def events(plan):
        plans.append(plan)
        yield {"peaks": {"x": 1}}
        for cell in plan["cells"]:
            if not plan["banned"]:
                yield {"begin": [cell, "eager"]}
                yield {"begin": [cell, "cuda"]}
                yield {"ended": "the process ended with code -6"}
                return
            yield {"cell": cell, "rows": [{**cell, "provider": p, "gate": "pass"} for p in plan["providers"]]}
        yield {"done": True}

    report, budget = Collected(), bench.gpu_budget.Budget(100.0)
    bench.gpu_parent.run_cells(problem.Settings(), cells, ["eager", "cuda"], budget, events, report)
    assert len(plans) == 2 and plans[1]["peaks"] == {"x": 1} and len(report.rows) == 4
    assert plans[1]["banned"] == [["forward", "cuda", "bf16", "at W=64, B=1: the process ended with code -6"]]


def test_a_worker_that_never_begins_is_not_started_again_and_again(bench):
    cell = bench.gpu_problem.Cell("forward", 64, 1, "bf16")
    report, budget = Collected(), bench.gpu_budget.Budget(100.0)
    events = lambda plan: iter([{"ended": "no module"}])  # noqa: E731
    bench.gpu_parent.run_cells(bench.gpu_problem.Settings(), [cell], ["eager"], budget, events, report)
    assert report.rows[0]["gate"] == "not run" and "no module" in report.rows[0]["reason"]


def test_a_worker_is_a_process_that_finds_the_package(bench, tiny, tmp_path):
    from dataclasses import asdict

    cell = bench.gpu_problem.Cell("forward", 64, 1, "fp32")
    plan = {"settings": asdict(tiny), "cells": [asdict(cell)], "providers": ["eager"], "seconds": 60.0}
    events = list(bench.gpu_parent.worker_events(plan, tmp_path / "worker.log"))
    assert "done" in events[-1], (tmp_path / "worker.log").read_text()
    assert next(event for event in events if "rows" in event)["rows"][0]["gate"] == "pass"
    broken = list(bench.gpu_parent.worker_events(plan | {"settings": {"no": 1}}, tmp_path / "worker.log"))
    assert len(broken) == 1 and "ended with code 1" in broken[0]["ended"]


def test_a_worker_that_says_nothing_is_stopped(bench, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.gpu_parent, "SILENCE", 0.2)
    plan = {"settings": vars(tiny), "cells": [], "providers": [], "seconds": 60.0}
    events = list(bench.gpu_parent.worker_events(plan, tmp_path / "worker.log"))
    assert len(events) == 1 and "was stopped" in events[0]["ended"]


def test_an_error_that_is_kept_holds_no_memory(bench):
    import weakref

    def breaks():
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("out of memory") from first

    held: list = []
    clock = bench.gpu_timing.Clock("cpu")
    found = bench.gpu_timing.interleave_on(clock, {"a": (breaks, breaks)}, 0.0, lambda name: None)
    assert isinstance(found["a"].failure, ValueError) and held[0]() is None


def test_the_cells_come_in_the_order_of_importance_and_each_once(bench):
    problem = bench.gpu_problem
    cells = problem.cells(problem.WORKLOADS, problem.WIDTHS, problem.BATCHES, tuple(problem.DTYPES))
    assert len(cells) == len(set(cells)) == 2 * 16 + 1
    assert cells[0] == problem.Cell("forward", 64, 1, "bf16")
    assert cells[8:11] == [
        problem.Cell("backward", 64, 32, "bf16"),
        problem.Cell("backward", 64, 32, "fp32"),
        problem.Cell("iteration", 64, 32, "fp32"),
    ]


def test_bytes_of_a_step_are_those_of_its_weights_and_of_keys_and_values(bench):
    settings = bench.gpu_problem.Settings(device="cpu")
    problem = settings.problem(bench.gpu_problem.Cell("forward", 64, 1, "bf16"), 2)
    products = [p for p in problem.denoiser.weights().tensors() if p.dim() == 2]
    expected = 2 * (sum(p.numel() for p in products) + 4 * 2 * 100 * 64)
    assert bench.gpu_problem.loop_bytes(settings.preset(64), "bf16") == expected
    assert bench.gpu_problem.loop_bytes(settings.preset(64), "fp32") == 2 * expected


def test_the_gate_knows_its_limits_and_refuses_what_is_not_a_number(bench):
    exact = {"x_0": torch.tensor([1.0, 2.0]).double(), "w": torch.tensor([3.0]).double()}
    eager = {"x_0": torch.tensor([1.0, 2.02]), "w": torch.tensor([3.03])}
    gate = bench.gpu_gate.Gate("bf16", exact, eager)
    assert gate.eager_errors == pytest.approx((0.01, 0.01))
    assert gate.limits(True) == pytest.approx((0.02, 0.03), abs=1e-5)
    assert gate.limits(False) == pytest.approx((0.04, 0.04))
    assert gate.verdict(eager, True)["gate"] == "pass"
    for wrong in ({"w": torch.tensor([math.nan])}, {"x_0": torch.tensor([math.inf, 2.0])}, {"w": torch.tensor([3.1])}):
        assert gate.verdict(eager | wrong, True)["gate"] == "fail"
    loose = bench.gpu_gate.Gate("bf16", exact, {"x_0": torch.tensor([1.0, 4.0]), "w": torch.tensor([9.0])})
    assert loose.limits(True) == (0.1, 0.3) == loose.limits(False)


def row(**fields) -> dict:
    times = {"median": 12.0, "p20": 11.0, "p80": 13.0}
    base = {"workload": "forward", "width": 64, "batch": 1, "dtype": "bf16", "provider": "cuda", "gate": "pass"}
    base |= {"us_per_step": times, "call_us_per_step": times | {"median": 40.0}, "host_bound": True, "errors": [1e-3]}
    return base | {"share_of_tensor_peak": 0.123, "share_of_l2": 0.456, "repetitions": 5} | fields


def test_the_report_is_written_whole_after_every_cell(bench, tmp_path):
    shown = []
    facts = {name: None for name in ("driver", "CUDA", "torch", "triton", "commit")}
    facts |= {"device": "NVIDIA X", "date": "2026-01-01", "settings": vars(bench.gpu_problem.Settings())}
    report = bench.gpu_report.Report(tmp_path, facts, shown.append)
    tools = {"memcheck": {"status": "passed"}, "racecheck": {"status": "timed out"}}
    report.set(build={"status": "passed", "seconds": 70.2}, sanitizer={"status": "timed out", "tools": tools})
    counts = {"passed": 3, "failed": 1, "skipped": 0, "failures": ["t"]}
    report.set(tests={"status": "failed", "reason": "code 1: 1 failed", "seconds": 9.0, **counts})
    report.add([row(), row(provider="eager", gate="fail", reason="x_0 is off by 1, allowed 0")])
    report.add([row(workload="iteration", seconds={"median": 1.5}, dtype="fp32")])
    text = (tmp_path / "gpu.md").read_text()
    assert "# NVIDIA X" in text and "Build: passed, 70 s." in text
    assert "Tests: failed, 3 passed, 1 failed, 0 skipped, 9 s (code 1: 1 failed)." in text
    assert "memcheck passed, racecheck timed out" in text
    assert "| 64 | 1 | bf16 | fail (1) | 12^ (40) | 12.3% | 45.6% |" in text
    assert "| 64 | 1 | fp32 | 1.5 s |" in text and "1. eager: fail, x_0 is off by 1, allowed 0" in text
    assert len(shown) == 3 and "bound by the host" in shown[0]
    assert report.exit_code() == 1 and not list(tmp_path.glob("*.part"))
    assert json.loads((tmp_path / "gpu.json").read_text())["tests"]["failures"] == ["t"]


def test_all_tests_that_need_a_device_are_run(bench, repo_root):
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "tests"]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=300)
    collected = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert len(collected) > 2 and collected <= set(bench.gpu_setup.test_files())


def test_counts_of_tests_are_read_from_a_run_that_was_cut_short(bench):
    text = "tests/a.py::test_one PASSED [ 10%]\ntests/a.py::T::test_two[64, 16] FAILED [ 20%]\ntests/a.py::test_three "
    text += "SKIPPED (no) [ 30%]\ntests/b.py::test_four ERROR [ 40%]\ntests/b.py::test_five"
    found = bench.gpu_setup.test_counts(text)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert found["failures"] == ["tests/a.py::T::test_two[64, 16]", "tests/b.py::test_four"]


def test_a_phase_that_takes_too_long_or_fails_says_so(bench, tmp_path):
    log = tmp_path / "x.log"
    assert bench.gpu_setup.run_logged([sys.executable, "-c", "import time; time.sleep(60)"], log, 0.3)[0] is None
    code, _ = bench.gpu_setup.run_logged([sys.executable, "-c", "raise SystemExit('no compiler')"], log, 30)
    outcome = bench.gpu_setup._outcome(code, 1.0, log, 30)
    assert outcome["status"] == "failed" and outcome["reason"] == "code 1: no compiler"


def test_a_missing_sanitizer_is_recorded(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.gpu_setup.shutil, "which", lambda *args, **options: None)
    assert bench.gpu_setup.sanitize(tmp_path, 1.0) == {"status": "not present"}


@needs_no_device
def test_without_a_device_it_is_one_sentence_and_the_code_of_an_unavailable_backend(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 69 and done.stdout == "" and not (tmp_path / "out").exists()
    assert done.stderr.count("\n") == 1 and "must have a CUDA device, got none" in done.stderr


@pytest.mark.parametrize("wrong", [[], ["--out", "x", "--batch", "many"], ["--out", "x", "--providers", "jax"]])
def test_a_wrong_option_is_a_usage_error(bench, wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.gpu.main(wrong)
    assert stopped.value.code == 2 and "error:" in capsys.readouterr().err


def test_it_needs_nothing_of_the_command_lines():
    """A machine with a GPU has torch, but perhaps not what parses this package's own command lines."""
    code = "import sys; sys.modules['jsonargparse'] = None; " + "; ".join(f"import {name}" for name in SIBLINGS)
    environment = {**os.environ, "PYTHONPATH": f"{BENCHMARKS.parent}{os.pathsep}{BENCHMARKS}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
