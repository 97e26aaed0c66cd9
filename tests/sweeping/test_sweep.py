"""``python -m rohydr_fast.sweep`` on a small file: done once, gone on with, never mistaken for another."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml

from rohydr_fast import sweep
from rohydr_fast.config import TrainConfig
from rohydr_fast.data import containers
from rohydr_fast.sweeping import execution, search
from rohydr_fast.sweeping.plan import Asked, plan
from tests.native_spy import needs_core, spy_on_core
from tests.small_data import small_dataset, small_tree

QUICK = ["--epochs", "1", "--steps", "2", "--batch-size", "5", "--jobs", "2"]


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "data.npz"
    containers.write(small_tree(), str(path))
    return path


def call(data_file, out, *arguments, capsys) -> tuple[int, dict]:
    code = sweep.main(["--data", str(data_file), "--out", str(out), "--json", *QUICK, *arguments])
    printed = capsys.readouterr()
    return code, json.loads(printed.out.splitlines()[-1]) if code == 0 else {"error": printed.err}


def test_it_runs_what_is_missing_and_nothing_twice(tmp_path, data_file, capsys):
    table = ["--table", "2", "--seeds", "1", "--methods", "zero", "mean"]
    code, first = call(data_file, tmp_path / "out", *table, capsys=capsys)
    assert code == 0 and sorted(first["done"]) == ["mean-seed1", "zero-seed1"] and not first["failed"]
    for name in first["done"]:
        assert [path.name for path in (tmp_path / "out" / name / "evaluations").glob("*.json")] == ["fixed-test.json"]
    (tmp_path / "out" / "mean-seed1" / "evaluations" / "fixed-test.json").unlink()
    metrics = (tmp_path / "out" / "mean-seed1" / "metrics.jsonl").read_bytes()
    code, second = call(data_file, tmp_path / "out", *table, capsys=capsys)
    assert code == 0 and second["skipped"] == ["zero-seed1"] and second["done"] == ["mean-seed1"]
    assert (tmp_path / "out" / "mean-seed1" / "metrics.jsonl").read_bytes() == metrics  # not trained again
    code, third = call(data_file, tmp_path / "out", "--table", "1", *table[2:], capsys=capsys)
    assert code == 0 and sorted(third["done"]) == ["mean-seed1", "zero-seed1"]
    assert (tmp_path / "out" / "mean-seed1" / "evaluations" / "rates-test.json").is_file()
    assert (tmp_path / "out" / "mean-seed1" / "metrics.jsonl").read_bytes() == metrics
    code, refused = call(data_file, tmp_path / "out", *table, "--lr", "0.5", capsys=capsys)
    assert code == 2 and "must hold a run with lr = 0.5, got one with 0.001" in refused["error"]


def test_a_method_that_these_data_cannot_have_is_named_and_a_broken_run_fails_alone(tmp_path, data_file, capsys):
    containers.write(
        {name: {**split, "id": small_ids(split)} for name, split in small_tree().items()},
        str(data_file),
        overwrite=True,
    )
    out = tmp_path / "out"
    (out / "mean-seed1").mkdir(parents=True)
    (out / "mean-seed1" / "note.txt").write_text("somebody else's")
    code, found = call(
        data_file, out, "--table", "1", "--seeds", "1", "--methods", "gcnet", "mean", "zero", capsys=capsys
    )
    assert code == 1 and "1 of 3 runs failed, the first: mean-seed1: --out: must be new or empty" in found["error"]
    assert (out / "zero-seed1" / "metrics.json").is_file() and not (out / "gcnet-seed1" / "config.yaml").exists()
    shutil.rmtree(out / "mean-seed1")
    code, found = call(data_file, out, "--table", "1", "--seeds", "1", "--methods", "gcnet", "mean", capsys=capsys)
    assert code == 0 and found["not_available"] == ["gcnet-seed1"] and found["done"] == ["mean-seed1"]


def small_ids(split: dict) -> list[str]:
    return [f"clip{i}" for i in range(len(split["id"]))]


def test_a_run_that_broke_off_goes_on_from_its_checkpoint(tmp_path, data_file, monkeypatch):
    base = TrainConfig(data=str(data_file), epochs=2, steps=2, batch_size=5, patience=0)
    (job,) = plan(Asked(table=1, seeds=(1,), methods=("zero",), base=base))
    from rohydr_fast.training.trainer import Trainer

    original = Trainer._finish_epoch

    def break_off(self, *arguments):
        original(self, *arguments)
        raise OSError("the disk is gone")

    monkeypatch.setattr(Trainer, "_finish_epoch", break_off)
    broken = execution.run_job(job, tmp_path, 1)
    assert broken.state == execution.FAILED and "the disk is gone" in broken.sentence
    monkeypatch.setattr(Trainer, "_finish_epoch", original)
    assert execution.run_job(job, tmp_path, 1).state == execution.DONE
    whole = execution.run_job(job, tmp_path / "whole", 1)
    assert whole.state == execution.DONE
    lines = [(tmp_path / place / "zero-seed1" / "metrics.jsonl").read_bytes() for place in (".", "whole")]
    assert lines[0] == lines[1]


@needs_core
def test_a_named_backend_trains_evaluates_and_searches(tmp_path, data_file, monkeypatch):
    calls = spy_on_core(monkeypatch)
    base = TrainConfig(data=str(data_file), epochs=1, steps=2, batch_size=5)
    for name, used in (("reference", False), ("cpp", True)):
        (job,) = plan(Asked(table=1, seeds=(1,), methods=("rohydr",), base=replace(base, backend=name)))
        assert execution.run_job(job, tmp_path / name, 1).state == execution.DONE
        search.search(replace(base, backend=name), trials=1, seed=1, out=tmp_path / f"search-{name}")
        assert bool(calls) == used


def test_sigterm_keeps_checkpoints_and_the_same_command_goes_on(tmp_path, data_file):
    command = [
        *[sys.executable, "-m", "rohydr_fast.sweep", "--table", "1", "--seeds", "1", "2", "--methods", "rohydr"],
        *["--data", str(data_file), "--out", str(tmp_path / "out"), "--epochs", "400", "--patience", "0"],
        *["--steps", "2", "--jobs", "2"],
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    rows = [tmp_path / "out" / f"rohydr-seed{seed}" / "metrics.jsonl" for seed in (1, 2)]
    while not all(path.exists() and path.stat().st_size > 2000 for path in rows):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "Go on with the same command" in errors, errors
    for path in rows:
        assert (path.parent / "checkpoints" / "last" / "state.json").exists() and not (
            path.parent / "table.md"
        ).exists()


def test_a_dry_run_runs_nothing(tmp_path, data_file, capsys):
    assert sweep.main(["--table", "5", "--out", str(tmp_path / "out"), "--dry-run", "--data", str(data_file)]) == 0
    assert "9 runs" in capsys.readouterr().out and not (tmp_path / "out").exists()


class Untouchable:
    def __getattribute__(self, name):
        raise AssertionError(f"the test split was read: {name}")


def test_a_search_never_reads_the_test_split_and_goes_on(tmp_path, monkeypatch):
    dataset = small_dataset()
    object.__setattr__(dataset, "test", Untouchable())
    monkeypatch.setattr(search, "read_dataset", lambda config: dataset)
    base = TrainConfig(epochs=1, steps=2, batch_size=5)
    first = search.search(base, trials=2, seed=3, out=tmp_path)
    assert first.document["trials"] == 2
    more = search.search(base, trials=3, seed=3, out=tmp_path)
    assert more.document["trials"] == 3 and more.document["valid_MAE"] <= first.document["valid_MAE"]
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert TrainConfig(**best).lambda_g == more.document["best"]["lambda_g"]
    assert more.table.count("\n") == 5 and len(list(tmp_path.glob("trial*/metrics.jsonl"))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "0"], "--search: must be 1 or more"),
        (["--search", "1", "--table", "1"], "--search: must stand without"),
        (["--table", "1", "--jobs", "0"], "--jobs: must be 1 or more"),
        ([], "exactly one of --table and --figure"),
    ],
)
def test_what_cannot_be_is_a_sentence(tmp_path, data_file, capsys, arguments, message):
    assert sweep.main(["--out", str(tmp_path / "out"), "--data", str(data_file), *arguments]) == 2
    assert message in capsys.readouterr().err
