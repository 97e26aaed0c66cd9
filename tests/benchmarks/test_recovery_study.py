"""The study of what recovery gains: from two small runs to its tables, whose share is that of the runs' numbers."""

import argparse
import importlib
import json
from pathlib import Path

import pytest

from rohydr_fast.config import TrainConfig
from rohydr_fast.data import load
from rohydr_fast.errors import UsageError

DATA, RATE = "synthetic:32/16/40", 0.5


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
        yield importlib.import_module("recovery_study")


def test_a_variant_is_settings_with_commas_between(study):
    base = TrainConfig()
    assert study.parse("default", base) == base
    changed = study.parse("prediction=v,draws=4,chain_grad=none,lr=1e-2", base)
    assert (changed.prediction, changed.draws, changed.chain_grad, changed.lr) == ("v", 4, "none", 0.01)
    for wrong in ("speed=9", "draws", "draws=", "draws=many", ""):
        with pytest.raises(UsageError, match="settings with commas between"):
            study.parse(wrong, base)


def test_from_runs_to_the_share_of_the_gap(study, tmp_path, capsys):
    options = argparse.Namespace(
        variants=["default"], out=tmp_path, data=DATA, preset="tiny", epochs=1, seeds=[1], rates=[RATE],
        samples=[1, 2], split="test", against="method=zero", jobs=1,
    )  # fmt: skip
    text = study.run(options)
    assert capsys.readouterr().err.count(" done in ") == 2
    assert study.run(options) == text and " done in " not in capsys.readouterr().err
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows if len(row) == 9][2:] == ["default", "default, 2 samples", "method=zero"]
    shares = {row[1]: row for row in rows if row[0] == "0.5"}
    assert shares["method=zero"][3] == shares["method=zero"][5] == "0"

    def stored(run: str) -> tuple[float, float]:
        (row,) = json.loads((tmp_path / run / "evaluations" / "exact-0.5-test.json").read_text())["rows"].values()
        return row["MAE"], row["Non0_acc_2"]

    (predictions,) = (tmp_path / "method=zero-seed1" / "predictions").glob("test-exact-*.npz")
    missing = study.Reader().read(predictions).missing
    best = load(DATA).known_best.metrics_for("test", missing)
    zero, default = stored("method=zero-seed1"), stored("default-seed1")
    for place, limit, mine, theirs in (
        (3, best["MAE"], default[0], zero[0]),
        (5, best["Non0_acc_2"], default[1], zero[1]),
    ):
        assert float(shares["default"][place].split()[0]) == pytest.approx(
            100 * (mine - theirs) / (limit - theirs), abs=0.51
        )
