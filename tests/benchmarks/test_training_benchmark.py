"""The training benchmark: its formulas, gate, memory, parts of an epoch and reports. Nothing here asserts a time."""

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rohydr_fast import _native
from tests.native_spy import needs_core, spy_on_core

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
EAGER = ("naive", "reference", "checkpointed")


@pytest.fixture(scope="module")
def bench():
    """The scripts of benchmarks/, which import each other as neighbours, by name."""
    names = ("training", *[path.stem for path in BENCHMARKS.glob("training_*.py")])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        shared = ("accuracy", "measure", "memory", "parts", "presets")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in (*names, *shared)})


@pytest.fixture
def tiny(bench, monkeypatch, one_thread):
    """A preset that takes milliseconds, and a probe that measures nothing."""
    preset = bench.presets.Preset(width=16, blocks=2, heads=2, tokens=6, keys=8, channels=4)
    monkeypatch.setitem(bench.presets.PRESETS, "tiny", preset)

    def probe(threads):
        return bench.measure.FmaProbe(threads, 0.0, kernel=lambda isa, milliseconds: 100.0, isa="stub")

    monkeypatch.setattr(bench.training_cell, "native_probe", probe)
    return preset


def run(bench, *arguments) -> int:
    arguments = ("--preset", "tiny", "--batch", "4", "--steps", "3", "--threads", "1", "--rounds", "2", *arguments)
    return bench.training.main(list(arguments), execute=bench.training_cell.run_cell)


def rows_of(path: Path) -> dict:
    rows = json.loads(path.read_text())["rows"]
    return {(row["workload"], row["provider"]): row for row in rows}


@pytest.mark.parametrize("name", ["narrow", "paper", "wide"])
@pytest.mark.parametrize("workload", ["Block", "Chain"])
def test_the_flop_formula_counts_what_pytorch_does_forward_and_back(bench, workload, name):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    problem = getattr(bench.training_problem, workload)(bench.presets.PRESETS[name], batch=2, steps=2)
    method = bench.training_methods.Hoisted(bench.training_methods.torch_noise)
    # The counter knows no fused attention of the CPU: let it see the matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        problem.run(method)
    assert problem.flop() == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_flop_of_training_counts_the_real_tokens_and_keys_of_each_clip(bench, tiny):
    flop, one = bench.training_iteration.training_flop, bench.training_problem.diffusion_flop
    lengths = {m: np.array([6, 3]) for m in "atv"}
    missing = np.array([[True, True, False], [False, False, True]])
    full, half = replace(tiny, tokens=6, keys=6), replace(tiny, tokens=3, keys=6)
    expected = 2 * (3 * one(full, 5) + one(full, 1)) + 3 * one(half, 5) + one(half, 1)
    assert flop(tiny, 5, lengths, missing) == expected


def test_the_error_of_gradients_by_hand(bench):
    error = bench.training_gate.gradient_error
    exact = {"a": torch.tensor([3.0, 4.0]).double(), "b": torch.ones(2).double(), "zero": torch.zeros(2).double()}
    found = {"a": torch.tensor([3.0, 4.5]), "b": torch.ones(2), "zero": torch.zeros(2)}
    assert error(found, exact) == pytest.approx(math.sqrt(0.1**2 / 2))
    assert error({"a": found["a"]}, exact) == math.inf  # one that is missing
    found["b"][0] = math.nan
    assert not error(found, exact) <= 1.0


def test_what_is_exact_is_held_to_the_rule_of_the_gradient_tests_and_an_opponent_is_not(bench):
    limit = bench.accuracy.gradient_limit
    assert limit(True, 1e-7) == pytest.approx(3e-7 + 2.0**-21)
    assert limit(False, 1e-7) == bench.accuracy.OPPONENT_LIMIT


def test_long_calls_can_warm_up_once(bench):
    log = []
    bench.measure.interleave({"a": lambda: log.append(1)}, rounds=2, shortest=0.0, settle=0.0, warm_ups=1)
    assert len(log) == 3


def test_rows_of_each_workload(bench):
    contenders = bench.training_providers.contenders
    everybody = ["naive", "reference", "checkpointed", "compile", "cpp"]
    assert contenders("block", None) == contenders("iteration", None) == everybody
    assert contenders("chain", None) == [*everybody, "cpp-recomputed"]
    assert contenders("chain", ["cpp", "naive"]) == ["cpp", "cpp-recomputed", "naive"]
    assert contenders("epoch", None) == ["cpp"] and contenders("epoch", ["reference"]) == ["reference"]


@needs_core
def test_main_measures_every_workload_and_writes_all_reports(bench, tiny, tmp_path, capsys):
    folder = tmp_path / "results"
    folder.mkdir()
    workloads = ("--workload", "block", "chain", "iteration")
    arguments = ("--providers", *EAGER, "cpp", "--json", str(folder), "--markdown", str(tmp_path / "t.md"))
    assert run(bench, *workloads, *arguments) == 0
    (path,) = folder.rglob("*-training.json")
    document, rows = json.loads(path.read_text()), rows_of(path)
    assert path.parent.parent == folder and path.name.startswith(document["date"][:10])
    names = [*EAGER, "cpp"]
    expected = [("block", n) for n in names] + [("chain", n) for n in [*names, "cpp-recomputed"]]
    assert list(rows) == expected + [("iteration", n) for n in names]
    naive = rows.pop(("block", "naive"))
    assert naive["gate"] == "skipped" and "seconds" not in naive
    for (workload, provider), row in rows.items():
        assert row["gate"] == "pass" and row["rel_error"] < 1e-3, (workload, provider)
        assert (row["preset"], row["batch"], row["threads"], row["steps"]) == ("tiny", 4, 1, 3)
        assert set(row["seconds"]) == {"median", "p20", "p80"} and row["rounds"] == 2
        assert row["gflops"] > 0 and row["share_of_fma_peak"] > 0 and row["peak_memory_mib"] >= 0
        assert (row["ratio_to_cpp"]["median"] == 1) == (provider == "cpp")
        assert ("rel_error_masked" in row) == (workload != "iteration")
    assert rows["chain", "cpp"]["rel_error_masked"] < 1e-5
    assert document["contended"] is False and document["fma_peak"]["isa"] == "stub"
    assert {"commit", "dirty", "machine", "versions", "date"} <= set(document)
    table = (tmp_path / "t.md").read_text()
    assert "| tiny | 4 | 1 | cpp-recomputed |" in table and table.count("| tiny | 4 | 1 | cpp |") == 3
    assert "- naive: skipped, one pass" in table
    assert "MiB" in capsys.readouterr().out
    # The tables and the figure again, from the file.
    assert bench.training.main(["--from", str(path), "--markdown", "-"]) == 0
    assert capsys.readouterr().out == table
    pytest.importorskip("matplotlib", reason="pip install -e '.[bench]'")
    for number in (1, 2):
        bench.training.main(["--from", str(path), "--figure", str(tmp_path / f"{number}.svg")])
    first, second = ((tmp_path / f"{number}.svg").read_bytes() for number in (1, 2))
    assert first.startswith(b"<?xml") and first == second


def test_what_the_compiler_is_given_has_one_graph_and_is_right(bench, tiny, monkeypatch):
    """By torch's "eager" compiler, which only traces: inductor takes minutes."""
    methods = bench.training_methods
    graphs = []

    def trace(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def compiled(function):
        return torch.compile(function, fullgraph=True, dynamic=False, backend=trace)

    monkeypatch.setattr(methods, "_compiled", compiled)
    for workload, expected in (("block", 1), ("chain", 1), ("iteration", 2)):
        (check, *_) = bench.training_gate.gates(workload, tiny, 3, 3, "full")
        torch._dynamo.reset()
        graphs.clear()
        assert max(check.errors(check.build("compile"))) < 1e-3
        assert len(graphs) == expected, workload  # all steps, modalities and stages share them


def replaced(bench, monkeypatch, name, build):
    monkeypatch.setitem(bench.training_providers.PROVIDERS, name, bench.training_providers.Provider(build))


def test_a_wrong_contender_gets_no_time_and_the_exit_code_is_1(bench, tiny, tmp_path, monkeypatch, capsys):
    methods = bench.training_methods

    class Wrong(methods.Hoisted):
        def step(self, x, *args, **options):
            return super().step(x.detach(), *args, **options)  # right x_0, wrong gradient

    replaced(bench, monkeypatch, "checkpointed", lambda workload, draw: Wrong(draw))
    path = tmp_path / "x.json"
    arguments = ("--workload", "chain", "--providers", "reference", "checkpointed", "--json", str(path))
    assert run(bench, *arguments, "--markdown", "-") == 1
    right, wrong = json.loads(path.read_text())["rows"]
    assert right["gate"] == "pass" and "seconds" in right
    assert wrong["gate"] == "fail" and not {"seconds", "peak_memory_mib", "gflops"} & wrong.keys()
    assert wrong["rel_error_loss"] < 1e-6 < 1e-3 < wrong["rel_error_gradient"] and "allowed 0.001" in wrong["reason"]
    assert "| tiny | 4 | 1 | checkpointed | fail | - |" in capsys.readouterr().out


def test_one_that_forgets_the_masks_or_breaks_is_red_too(bench, tiny, tmp_path, monkeypatch):
    methods = bench.training_methods

    class Blind(methods.Hoisted):
        def chain(self, request):
            return super().chain(request._replace(key_mask=None))

    class Broken(methods.Hoisted):
        def chain(self, request):
            raise RuntimeError("no such\nkernel")

    replaced(bench, monkeypatch, "checkpointed", lambda workload, draw: Blind(draw))
    replaced(bench, monkeypatch, "naive", lambda workload, draw: Broken(draw))
    path = tmp_path / "x.json"
    arguments = ("--workload", "chain", "--providers", "naive", "checkpointed", "--json", str(path))
    assert run(bench, *arguments) == 1
    broken, blind = json.loads(path.read_text())["rows"]
    assert blind["gate"] == "fail" and blind["rel_error"] < 1e-5 < blind["rel_error_masked"]
    assert broken["gate"] == "error" and broken["reason"] == "RuntimeError: no such kernel"


@needs_core
def test_cpp_recomputed_keeps_no_activations(bench, tiny, monkeypatch):
    calls, problem = spy_on_core(monkeypatch), bench.training_problem.Chain(tiny, 2, 3)
    gradients = []
    for name, tapes in (("cpp", 2), ("cpp-recomputed", 0)):
        calls.clear()
        problem.run(bench.training_providers.PROVIDERS[name].build("chain", bench.training_methods.torch_noise))
        assert [(call.op, call.chains, call.tapes) for call in calls if call.op.startswith("reverse_loop")] == [
            ("reverse_loop", 2, tapes),
            ("reverse_loop_backward", 2, tapes),
        ]
        gradients.append({key: value.clone() for key, value in problem.gradients().items()})
        problem.change_weights()  # as they were
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])


@needs_core
@pytest.mark.parametrize("workload", ["Block", "Chain"])
def test_the_weights_of_every_run_are_new(bench, tiny, workload, monkeypatch):
    """Or packing them, which every training step pays for, would not be timed."""
    packed = []
    for kind in ("denoiser", "diffusion_loss"):
        spy(monkeypatch, f"pack_{kind}", packed)
    problem = getattr(bench.training_problem, workload)(tiny, 2, 3)
    method = bench.training_methods.Package("cpp")
    for run in range(1, 4):
        versions = {name: leaf._version for name, leaf in problem.leaves.items()}
        problem.run(method)
        assert all(leaf._version > versions[name] for name, leaf in problem.leaves.items())
        assert [weights.packs for weights in packed] == [run, run]


def spy(monkeypatch, name: str, made: list) -> None:
    core = _native.load()
    pack = getattr(core, name)
    monkeypatch.setattr(core, name, lambda *arguments: made.append(pack(*arguments)) or made[-1])


def test_all_runs_see_the_same_numbers_but_for_a_bit(bench, tiny):
    problem = bench.training_problem.Block(tiny, 2, 3)
    before = {name: leaf.detach().clone() for name, leaf in problem.leaves.items()}
    for run in range(4):
        problem.change_weights()
        changed = {name: leaf for name, leaf in problem.leaves.items() if not torch.equal(leaf, before[name])}
        assert len(changed) == (0 if run % 2 else 4)  # two of each network
        for name, leaf in changed.items():
            assert int((leaf != before[name]).sum()) == 1 and torch.allclose(leaf, before[name], rtol=2e-7, atol=0)


def test_opponents_draw_with_torch_when_they_are_timed(bench, tiny):
    problem = bench.training_problem.Chain(tiny, 2, 3)
    for name in EAGER:
        method = bench.training_providers.PROVIDERS[name].build("chain", bench.training_methods.torch_noise)
        assert problem.run(method) != problem.run(method)


def test_the_peak_memory_of_a_call(bench):
    memory = bench.memory
    if memory.why_not():
        pytest.skip(memory.why_not())
    kept = torch.ones(64 * 2**18)  # 64 MiB, before
    peak = memory.peak_mib(lambda: torch.ones(32 * 2**18).sum())
    assert 30 < peak < 45 and len(kept)
    assert memory.peak_mib(lambda: None) < 5


def test_a_call_that_wants_more_memory_than_is_free_is_stopped(bench, monkeypatch):
    memory = bench.memory
    if memory.why_not():
        pytest.skip(memory.why_not())
    monkeypatch.setattr(memory, "SHARE", 0.001)
    with pytest.raises(memory.OutOfMemory, match="needs more memory than the"):
        memory.peak_mib(lambda: torch.ones(2**30))
    torch.ones(2**20)  # the limit is gone

    def fail():
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        memory.peak_mib(fail)


def test_one_that_needs_too_much_memory_is_skipped_with_the_reason_and_not_timed(bench, tiny, tmp_path, monkeypatch):
    def peak_mib(call):
        raise bench.memory.OutOfMemory("needs more memory than the 7 MiB that are free")

    monkeypatch.setattr(bench.training_cell, "peak_mib", peak_mib)
    path = tmp_path / "x.json"
    assert run(bench, "--workload", "chain", "--providers", "naive", "--json", str(path)) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["gate"] == "skipped" and "seconds" not in row
    assert row["reason"] == "at tiny, batch 4, chain needs more memory than the 7 MiB that are free."


def test_the_clock_of_parts_follows_calls_and_the_way_back(bench):
    now = 0.0
    clock = bench.parts.Clock(lambda: now)

    def spend(seconds, x):
        nonlocal now
        now += seconds
        return x

    class Back(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, forward, back):
            ctx.back = back
            return spend(forward, x.clone())

        @staticmethod
        def backward(ctx, gradient):
            return spend(ctx.back, gradient.clone()), None, None

    extract = clock.wrap(lambda x: {"t": Back.apply(x, 1, 10)}, "extract")
    chain = clock.wrap(lambda x: [Back.apply(Back.apply(x, 1, 5), 1, 15)], "chain")
    x = torch.ones(2, requires_grad=True)
    out = chain(extract(x)["t"])[0]
    spend(100, out)
    with clock.stopped():
        spend(1000, extract(x))
    with clock.part(bench.parts.LOSSES):
        Back.apply(out, 3, 4).sum().backward()
    spend(7, out)
    clock.switch(bench.parts.REST)
    found = {name: seconds for name, seconds in clock.seconds.items() if seconds}
    assert found == {
        "extract": 11,
        "chain forward": 2,
        "chain backward": 20,
        bench.parts.LOSSES: 7,
        bench.parts.REST: 107,
    }


@needs_core
def test_an_epoch_with_its_parts(bench, tiny, tmp_path, capsys):
    path = tmp_path / "x.json"
    options = ("--workload", "epoch", "--clips", "8", "--lengths", "mosi", "--rounds", "1", "--markdown", "-")
    assert run(bench, *options, "--providers", "cpp", "reference", "naive", "--json", str(path)) == 0
    rows = rows_of(path)
    assert rows["epoch", "naive"]["gate"] == "skipped"
    for name in ("cpp", "reference"):
        row = rows["epoch", name]
        assert row["gate"] == "pass" and row["seconds"]["median"] > 0 and row["lengths"] == "mosi"
        assert set(row["parts"]) == set(bench.parts.PARTS)
        assert sum(row["parts"].values()) == pytest.approx(1, abs=1e-4)  # of rounded numbers
        assert all(share > 0 for share in row["parts"].values()), row["parts"]
        assert row["peak_memory_mib"] >= 0
    assert "chain forward | chain backward" in capsys.readouterr().out


def test_the_parts_of_an_epoch_add_up_and_leave_nothing_replaced(bench, tiny):
    from rohydr_fast import losses
    from rohydr_fast.models.rohydr import RoHyDR

    before = RoHyDR.extract, losses.eq4_ur, torch.Tensor.backward, torch.nn.utils.clip_grad_norm_
    epoch = bench.training_epoch.Epoch(tiny, 4, 2, "full", 8)
    seconds, parts = epoch.run(bench.training_methods.Package("reference"))
    assert epoch.batches() == 2 and sum(parts.values()) == pytest.approx(seconds)
    assert before == (RoHyDR.extract, losses.eq4_ur, torch.Tensor.backward, torch.nn.utils.clip_grad_norm_)
    shares = bench.training_epoch.shares([parts])
    assert sum(shares.values()) == pytest.approx(1)
    # Every clip keeps one modality: two chains for each, in each of three stages, and Eq. 3 once.
    one = bench.training_problem.diffusion_flop(replace(tiny, keys=tiny.tokens), 2)
    eq3 = bench.training_problem.diffusion_flop(replace(tiny, keys=tiny.tokens), 1)
    assert epoch.flop() == 8 * 2 * (3 * one + eq3)


def test_a_cell_runs_in_processes_of_their_own(bench):
    options = SimpleNamespace(
        workload=["block"], preset=["narrow"], batch=[1], threads=[1], steps=2, lengths="full", clips=1, rounds=1,
        providers=["reference"],
    )  # fmt: skip
    (cell,) = bench.training.cells(options)
    (row,) = bench.training_cell.measure_cell(cell, bench.training.in_subprocess)["rows"]
    assert row["gate"] == "pass" and row["seconds"]["median"] > 0
    assert bench.memory.why_not() or 0 < row["peak_memory_mib"] < 100


def test_a_process_that_dies_is_an_error(bench):
    cell = {"workload": "block", "preset": "no such preset", "batch": 1, "threads": 1, "steps": 2, "lengths": "full"}
    cell |= {"clips": 1, "rounds": 1, "providers": ["reference"]}

    def no_memory(cell):
        return {"peak_memory_mib": 1.0} if cell["kind"] == "memory" else bench.training.in_subprocess(cell)

    (row,) = bench.training_cell.measure_cell(cell, no_memory)["rows"]
    assert row["gate"] == "error" and "ended with code 1" in row["reason"]
