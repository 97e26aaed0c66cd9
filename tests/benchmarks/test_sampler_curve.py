"""The curve of samplers: on a small run, and its rule on known numbers."""

import importlib
from pathlib import Path

import pytest

from rohydr_fast.config import TrainConfig
from rohydr_fast.training import experiment
from tests.small_data import small_dataset


@pytest.fixture(scope="module")
def curve():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
        yield importlib.import_module("sampler_curve")


def row(sampler: str, steps: int, accuracy: float, error: float = 0.01) -> dict:
    numbers = {"ACC2": accuracy, "ACC2_se": error, "MAE": 1.0, "MAE_se": 0.1, "mse": 1.0, "cosine": 0.0}
    return {"sampler": sampler, "steps": steps, "runs": 1, **numbers}


def test_the_smallest_number_of_steps_from_which_on_all_are_as_good(curve):
    rows = [row("ddim", steps, accuracy) for steps, accuracy in ((1, 0.5), (2, 0.71), (4, 0.6), (8, 0.695), (50, 0.7))]
    rows += [row("unipc", 1, 0.7), row("unipc", 50, 0.7)]
    assert curve.enough_steps(rows) == {"ddim": 8, "unipc": 1}
    assert "| ddim | 8 * |" in curve.table(rows, curve.enough_steps(rows))


def test_every_sampler_runs_on_a_trained_run(curve, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "load", lambda *arguments, **options: small_dataset())
    config = TrainConfig(epochs=1, patience=0)
    experiment.start(config, tmp_path / "run")
    rows = curve.summarise([curve.measure(tmp_path / "run", ["ancestral", "ddim", "dpm++2m", "unipc"], [1, 3])])
    assert len(rows) == 8
    one_step = [entry for entry in rows if entry["steps"] == 1 and entry["sampler"] != "ancestral"]
    # With one step all three deterministic samplers are the network's x_0.
    assert all(entry["mse"] == pytest.approx(one_step[0]["mse"], rel=1e-4) for entry in one_step)
    assert len({round(entry["mse"], 5) for entry in rows if entry["steps"] == 3}) == 4
