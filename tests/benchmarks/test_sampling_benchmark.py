"""The sampling benchmark: its formulas, statistics, gate and reports. Nothing here asserts a time."""

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.native_spy import needs_core, spy_on_core

SIBLINGS = (
    "measure",
    "report",
    "sampling",
    "sampling_cell",
    "sampling_gate",
    "sampling_problem",
    "sampling_providers",
    "sampling_scaling",
)


@pytest.fixture(scope="module")
def bench():
    """The scripts of benchmarks/, which import each other as neighbours, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in SIBLINGS})


@pytest.fixture
def tiny(bench, monkeypatch, one_thread):
    """A preset that takes milliseconds, and a probe that measures nothing."""
    preset = bench.sampling_problem.Preset(width=16, blocks=2, heads=2, tokens=6, keys=8, channels=4)
    monkeypatch.setitem(bench.sampling_problem.PRESETS, "tiny", preset)

    def probe(threads):
        return bench.measure.FmaProbe(threads, 0.0, kernel=lambda isa, milliseconds: 100.0, isa="stub")

    monkeypatch.setattr(bench.sampling_cell, "native_probe", probe)
    monkeypatch.setattr(bench.sampling_scaling, "native_probe", probe)
    return preset


def run(bench, *arguments) -> int:
    arguments = ("--preset", "tiny", "--batch", "2", "--steps", "4", "--threads", "1", "--rounds", "2", *arguments)
    return bench.sampling.main(list(arguments), execute=bench.sampling_cell.run_cell)


@pytest.mark.parametrize("name", ["narrow", "paper", "wide"])
def test_the_flop_formula_counts_what_the_reference_step_does(bench, name):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from rohydr_fast.ops.reverse_loop import Modulation
    from rohydr_fast.ops.reverse_loop.reference import denoiser

    preset = bench.sampling_problem.PRESETS[name]
    problem = bench.sampling_problem.make_problem(preset, batch=3, steps=2)
    network = problem.denoiser
    tables, kv = network.conditioning(problem.table.timesteps, problem.cond)
    row = Modulation(tables.blocks[0], tables.final[0])
    x, position = torch.randn(problem.shape), network.position(preset.tokens)
    # The counter knows no fused attention of the CPU: let it see the matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        denoiser(x, position, row, kv, network.weights(), num_heads=network.num_heads)
    assert 3 * bench.sampling_problem.useful_flop(preset) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_useful_flop_of_the_narrow_preset_by_hand(bench):
    per_block = 28 * 50 * 32 * 32 + 4 * 50 * 150 * 32
    assert (
        bench.sampling_problem.useful_flop(bench.sampling_problem.PRESETS["narrow"]) == 4 * per_block + 6 * 50 * 32 * 32
    )


def test_statistics(bench):
    measure = bench.measure
    assert measure.summary([5.0, 1.0, 3.0, 2.0, 4.0]) == pytest.approx({"median": 3, "p20": 1.8, "p80": 4.2})
    assert measure.quantile([7.0], 0.2) == 7.0
    # Every round is slower than the one before, yet the ratio is the same in all: pairs, not medians of medians.
    assert measure.paired_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == {"median": 2, "p20": 2, "p80": 2}
    with pytest.raises(ValueError):
        measure.paired_ratio([1.0], [1.0, 2.0])


def test_contention_by_spread_and_by_threads_that_slow_each_other(bench):
    peak, verdict = bench.measure.Peak, bench.measure.contention
    assert verdict({1: [peak(100, 100)] * 5})["contended"] is False
    uneven = verdict({1: [peak(100, 100)] * 3 + [peak(60, 60)] * 3})
    assert uneven["contended"] is True and uneven["spread"] == pytest.approx(0.4)
    assert verdict({2: [peak(100, 200)] * 5})["thread_scaling"] == 1
    slow = verdict({2: [peak(100, 170)] * 5})
    assert slow["contended"] is True and slow["thread_scaling"] == pytest.approx(0.85) and len(slow["why"]) == 1
    assert verdict({1: []})["contended"] is None


def test_every_contender_runs_once_a_round_in_a_rotating_order_between_probes(bench):
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "abc"}

    def probe():
        log.append("|")
        return bench.measure.Peak(10.0 * log.count("|"), 10.0 * log.count("|"))

    found = bench.measure.interleave(calls, rounds=3, probe=probe, shortest=0.0, settle=0.0)
    assert "".join(log).split("|")[2:5] == ["abc", "bca", "cab"]
    assert [len(values) for values in found.seconds.values()] == [3, 3, 3]
    assert found.peaks() == [25, 35, 45]


def test_the_probe_adds_up_its_threads(bench):
    probe = bench.measure.FmaProbe(3, 1.0, kernel=lambda isa, milliseconds: 7.0, isa="stub")
    assert probe() == bench.measure.Peak(7.0, 21.0)


def test_without_a_native_probe_shares_are_unknown(bench, monkeypatch, capsys):
    from rohydr_fast import _native
    from rohydr_fast.errors import BackendUnavailable

    def missing():
        raise BackendUnavailable("rohydr_fast._C: the native core is not built.")

    monkeypatch.setattr(_native, "load", missing)
    assert bench.measure.native_probe(1) is None
    assert "not built" in capsys.readouterr().err


def test_the_gate_of_an_exact_contender_follows_float32_and_that_of_an_opponent_does_not(bench):
    reference = torch.tensor([1.0, -4.0], dtype=torch.float64)
    limit = bench.sampling_gate.gate_limit
    assert limit(True, 1e-7, reference) == pytest.approx(2e-7 + 2.0**-21 / 4)  # float32 numbers at 4 are 2^-21 apart
    assert limit(False, 1e-7, reference) == bench.sampling_gate.OPPONENT_LIMIT


def test_a_nan_does_not_pass_the_gate(bench, tiny):
    gate = bench.sampling_gate.Gate(bench.sampling_problem.make_problem(tiny, 2, 3), 1)
    assert not gate.passes(gate.error(lambda noise: torch.full((2, 6, 4), math.nan)), exact=False)


def test_main_measures_reference_and_hoisted_and_writes_all_reports(bench, tiny, tmp_path, capsys):
    folder = tmp_path / "results"
    folder.mkdir()
    arguments = ("--providers", "reference", "hoisted", "--json", str(folder), "--markdown", str(tmp_path / "t.md"))
    assert run(bench, *arguments) == 0
    (path,) = folder.rglob("*-sampling.json")
    document = json.loads(path.read_text())
    assert path.parent.parent == folder and path.name.startswith(document["date"][:10])
    assert [row["provider"] for row in document["rows"]] == ["reference", "hoisted"]
    for row in document["rows"]:
        assert row["gate"] == "pass" and row["rel_error"] < 1e-5 and row["rel_error_masked"] < 1e-5
        assert set(row["ms_per_step"]) == {"median", "p20", "p80"} and row["rounds"] == 2
        assert row["gflops"] > 0 and 0 < row["share_of_fma_peak"] and row["ratio_to_cpp"] is None
    assert document["contended"] is False and document["fma_peak"]["isa"] == "stub"
    assert {"commit", "dirty", "machine", "versions", "date"} <= set(document)
    assert "| tiny | 2 | 1 |" in (tmp_path / "t.md").read_text()
    assert "ms/step" in capsys.readouterr().out
    # The tables again, from the file.
    assert bench.sampling.main(["--from", str(path), "--markdown", "-"]) == 0
    assert capsys.readouterr().out == (tmp_path / "t.md").read_text()


def test_a_wrong_contender_gets_no_time_and_the_exit_code_is_1(bench, tiny, tmp_path, monkeypatch, capsys):
    providers = bench.sampling_providers

    def build_wrong(problem, threads):
        right = providers.build_hoisted(problem, threads)
        return lambda noise=None: right(noise) * 1.01

    monkeypatch.setitem(providers.PROVIDERS, "compile", providers.Provider(build_wrong))
    path = tmp_path / "x.json"
    assert run(bench, "--providers", "reference", "compile", "--json", str(path), "--markdown", "-") == 1
    right, wrong = json.loads(path.read_text())["rows"]
    assert right["gate"] == "pass" and "ms_per_step" in right
    assert wrong["gate"] == "fail" and "ms_per_step" not in wrong and "off by 0.01" in wrong["reason"]
    assert "| tiny | 2 | 1 |" in capsys.readouterr().out


def test_one_that_forgets_the_mask_or_breaks_is_red_too(bench, tiny, tmp_path, monkeypatch):
    providers = bench.sampling_providers

    def build_blind(problem, threads):
        return providers.build_hoisted(replace(problem, key_mask=None), threads)

    def build_broken(problem, threads):
        raise RuntimeError("no such\nkernel")

    monkeypatch.setitem(providers.PROVIDERS, "compile", providers.Provider(build_blind))
    monkeypatch.setitem(providers.PROVIDERS, "openvino", providers.Provider(build_broken))
    path = tmp_path / "x.json"
    assert run(bench, "--providers", "compile", "openvino", "--json", str(path)) == 1
    blind, broken = json.loads(path.read_text())["rows"]
    assert blind["gate"] == "fail" and blind["rel_error"] < 1e-5 < blind["rel_error_masked"]
    assert broken["gate"] == "error" and broken["reason"] == "RuntimeError: no such kernel"


def test_cpp_draws_the_noise_that_the_others_are_given_and_is_what_they_are_compared_with(
    bench, tiny, tmp_path, monkeypatch
):
    providers = bench.sampling_providers
    stand_in = providers.Provider(lambda problem, threads: lambda noise=None: problem.sample("reference"))
    monkeypatch.setitem(providers.PROVIDERS, "cpp", stand_in)
    path = tmp_path / "x.json"
    assert run(bench, "--providers", "hoisted", "cpp", "--json", str(path), "--markdown", str(tmp_path / "t.md")) == 0
    hoisted, cpp = json.loads(path.read_text())["rows"]
    assert hoisted["rel_error"] < 1e-5 and cpp["rel_error"] < 1e-5
    assert hoisted["ratio_to_cpp"]["median"] > 0 and cpp["ratio_to_cpp"] == {"median": 1, "p20": 1, "p80": 1}
    assert "x)" in (tmp_path / "t.md").read_text()


@needs_core
@pytest.mark.parametrize("name", ["reference", "hoisted", "cpp"])
def test_only_cpp_runs_in_the_native_core(bench, tiny, monkeypatch, name):
    calls = spy_on_core(monkeypatch)
    problem = bench.sampling_problem.make_problem(tiny, batch=2, steps=3)
    bench.sampling_providers.PROVIDERS[name].build(problem, 1)(None)
    assert [call.op for call in calls] == (["reverse_loop"] if name == "cpp" else [])


def test_a_peer_that_is_not_installed_is_skipped_with_the_command(bench, tiny, tmp_path, monkeypatch, capsys):
    providers = bench.sampling_providers
    absent = providers.Provider(providers.build_onnxruntime, ("no_such_package",))
    monkeypatch.setitem(providers.PROVIDERS, "onnxruntime", absent)
    assert run(bench, "--providers", "hoisted", "onnxruntime", "--markdown", "-") == 0
    out = capsys.readouterr().out
    assert "skipped" in out and "pip install no_such_package" in out and "-e '.[bench]'" in out


def test_cost_against_tokens_keys_batch_and_steps(bench, tiny, tmp_path, monkeypatch):
    scaling = bench.sampling_scaling
    case = scaling.Case
    chosen = [case("real tokens", 6, 2, 2, tokens=6), case("real tokens", 3, 2, 2, tokens=3), case("batch", 1, 1, 2)]
    monkeypatch.setattr(scaling, "cases", lambda preset: chosen)
    path = tmp_path / "x.json"
    assert run(bench, "--providers", "hoisted", "--ragged", "--json", str(path), "--markdown", "-") == 0
    rows = json.loads(path.read_text())["scaling"]
    assert [(row["series"], row["value"]) for row in rows] == [("real tokens", 6), ("real tokens", 3), ("batch", 1)]
    assert all(row["gate"] == "pass" and row["ms"]["median"] > 0 for row in rows)
    assert rows[0]["relative"] == 1


def test_the_cases_cover_the_series(bench):
    values = {}
    for case in bench.sampling_scaling.cases(bench.sampling_problem.PRESETS["paper"]):
        values.setdefault(case.series, []).append(case.value)
    assert values == {
        "real tokens": [50, 25, 15],
        "real keys": [100, 50],
        "batch": [1, 2, 4, 8, 16, 32],
        "steps": [10, 25, 50],
    }


def test_the_figure_is_drawn_from_a_document(bench, tiny, tmp_path):
    pytest.importorskip("matplotlib", reason="pip install -e '.[bench]'")
    path = tmp_path / "x.json"
    run(bench, "--providers", "hoisted", "--json", str(path))
    for number in (1, 2):
        bench.sampling.main(["--from", str(path), "--figure", str(tmp_path / f"{number}.svg")])
    first, second = ((tmp_path / f"{number}.svg").read_bytes() for number in (1, 2))
    assert first.startswith(b"<?xml") and first == second


def test_a_cell_runs_in_a_process_of_its_own(bench):
    cell = {"kind": "cell", "preset": "narrow", "batch": 1, "threads": 1, "steps": 2, "rounds": 1}
    (row,) = bench.sampling.in_subprocess({**cell, "providers": ["hoisted"]})["rows"]
    assert row["gate"] == "pass" and row["ms_per_step"]["median"] > 0


def test_a_process_that_dies_is_an_error(bench):
    cell = {"kind": "cell", "preset": "no such preset", "batch": 1, "threads": 1, "steps": 2, "rounds": 1}
    (row,) = bench.sampling.in_subprocess({**cell, "providers": ["hoisted"]})["rows"]
    assert row["gate"] == "error" and "ended with code 1" in row["reason"]
