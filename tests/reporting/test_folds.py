"""Folds of cross-validation become one run that has predicted every clip once."""

import json
from pathlib import Path

import numpy as np
import pytest

from rohydr_fast.errors import DataError
from rohydr_fast.evaluation.metrics import metrics
from rohydr_fast.reporting.collect import collect
from rohydr_fast.reporting.document import build
from rohydr_fast.reporting.folds import join_folds
from tests.reporting.run_directories import write_run

SIZES = {1: 20, 2: 30, 3: 25}


def write_folds(path: Path, folds=(1, 2, 3), evaluate=("rates",), **settings) -> None:
    for fold in folds:
        name = f"{settings.get('method', 'rohydr')}-seed{settings.get('seed', 1)}-fold{fold}"
        write_run(
            path / name, folds=3, fold=fold, clips=SIZES[fold], prefix=f"fold{fold}_", evaluate=evaluate, **settings
        )


def test_a_row_has_all_clips_once_and_their_metrics(tmp_path):
    write_folds(tmp_path)
    parts = collect([tmp_path]).runs
    (run,) = join_folds(collect([tmp_path])).runs
    (evaluation,) = run.evaluations
    assert len(evaluation.rows) == 8 and "fold" not in run.settings.values
    for place, row in enumerate(evaluation.rows):
        pieces = [part.evaluations[0].rows[place] for part in parts]
        assert len(set(row.predictions.ids.tolist())) == len(row.predictions.ids) == 75
        answers, labels = (
            np.concatenate([getattr(p.predictions, k) for p in pieces]) for k in ("prediction", "labels")
        )
        assert row.metrics == metrics(answers, labels)
        assert row.rate == pytest.approx(sum(p.rate * SIZES[i] for i, p in enumerate(pieces, 1)) / 75)
    assert len(run.own.predictions.ids) == 75 and run.epochs == parts[0].epochs  # those of the runs are equal


def test_what_a_row_says_beyond_metrics_is_a_mean_by_clips(tmp_path):
    for fold, coverage in ((1, 0.5), (2, 0.8), (3, 0.9)):
        extra = {
            "uncertainty": {"conformal": {"nominal": 0.8, "coverage": coverage}, "draws": None},
            "recovery": {"a": {"relative_mse": coverage}} | ({"t": {"relative_mse": 1.0}} if fold > 1 else {}),
        }
        write_folds(tmp_path, (fold,), extra=extra)
    (run,) = join_folds(collect([tmp_path])).runs
    expected = (0.5 * 20 + 0.8 * 30 + 0.9 * 25) / 75
    row = run.evaluations[0].rows[0]
    assert row.uncertainty == {"conformal": {"nominal": 0.8, "coverage": pytest.approx(expected)}, "draws": None}
    assert row.recovery == {"a": {"relative_mse": pytest.approx(expected)}}


def test_a_seed_that_lacks_a_fold_is_left_out_and_named(tmp_path):
    write_folds(tmp_path, seed=1)
    write_folds(tmp_path, (1, 3), seed=2)
    joined = join_folds(collect([tmp_path]))
    assert [run.seed for run in joined.runs] == [1]
    assert [entry.path.name for entry in joined.left_out] == ["rohydr-seed2-fold1", "rohydr-seed2-fold3"]
    assert all("fold 2 of 3 is not there" in entry.reason for entry in joined.left_out)


def test_the_same_fold_twice_counts_once(tmp_path):
    write_folds(tmp_path / "one")
    write_folds(tmp_path / "two", (2,))
    joined = join_folds(collect([tmp_path]))
    (entry,) = joined.left_out
    assert len(joined.runs) == 1 and "fold 2 of the same settings and seed is already there" in entry.reason


def test_an_evaluation_that_a_fold_lacks_is_left_out_and_named(tmp_path):
    write_folds(tmp_path, (1, 2), evaluate=("rates", "fixed"))
    write_folds(tmp_path, (3,), evaluate=("rates",))
    joined = join_folds(collect([tmp_path]))
    assert [e.protocol for e in joined.runs[0].evaluations] == ["rates"]
    assert "evaluation fixed is not there for all of its 3 folds" in joined.left_out[0].reason


def test_no_whole_cross_validation_at_all_is_an_error_that_says_why(tmp_path):
    write_folds(tmp_path, (1, 2))
    with pytest.raises(DataError, match="no run is left.*fold 3 of 3 is not there"):
        join_folds(collect([tmp_path]))


def test_a_report_compares_methods_over_all_folds(tmp_path):
    for seed in (1, 2):
        write_folds(tmp_path / "runs", seed=seed)
        write_folds(tmp_path / "runs", seed=seed, method="zero", noise=3.0)
    built = build([tmp_path / "runs"], tmp_path / "report", drawn=False)
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(document["groups"]) == 2 and not built.sentences
    mean = next(pair for pair in document["comparisons"] if pair["condition"] == "mean")
    assert mean["clips"] == 75 and mean["seeds"] == [1, 2]
    assert (mean["first"], mean["differences"]["MAE"]["better"]) == ("RoHyDR", "first")
