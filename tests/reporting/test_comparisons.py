"""Which rows are compared, and what is said of them."""

import csv
import io

import numpy as np
import pytest

from rohydr_fast.errors import UsageError
from rohydr_fast.reporting import comparisons
from rohydr_fast.reporting.collect import collect
from rohydr_fast.reporting.groups import MEAN, ONE_MODEL, group_runs, series_of
from tests.reporting.run_directories import sweep, write_run


def pairs_of(path, against=None):
    groups, _ = group_runs(collect([path]).runs)
    return comparisons.against_reference(series_of(groups), against)


@pytest.fixture
def methods(tmp_path):
    """rohydr is much better than zero, and like regress."""
    return sweep(tmp_path, {"zero": 9.0, "regress": 1.0, "rohydr": 1.0}, evaluate=("rates",), missing_rate="mixed")


def test_the_full_model_is_the_reference_and_the_mean_comes_first(methods):
    pairs = pairs_of(methods)
    assert {(pair.first, pair.second) for pair in pairs} == {("RoHyDR", "zero-fill"), ("RoHyDR", "regression")}
    assert pairs[0].condition == MEAN and [pair.condition for pair in pairs[1:9]] == [f"{i / 10}" for i in range(8)]
    assert {pair.section for pair in pairs} == {ONE_MODEL}


def test_better_is_said_only_where_the_interval_excludes_zero(methods):
    means = {pair.second: pair for pair in pairs_of(methods) if pair.condition == MEAN}
    assert means["zero-fill"].verdict("MAE") == "RoHyDR is better"
    assert means["regression"].verdict("MAE") == "no difference shown"
    text = comparisons.to_markdown(list(means.values()))
    assert text.count("RoHyDR is better") >= 1 and "no difference shown" in text and "seeds (by number)" in text


def test_the_reference_can_be_named(methods):
    pairs = pairs_of(methods, "zero-fill")
    assert {pair.first for pair in pairs} == {"zero-fill"} and pairs[0].verdict("MAE") != "zero-fill is better"
    with pytest.raises(UsageError, match="--against.*'nothing'.*zero-fill, regression, RoHyDR"):
        pairs_of(methods, "nothing")


def test_only_conditions_that_both_have_are_compared(tmp_path):
    write_run(tmp_path / "zero", method="zero", evaluate=("rates",))
    write_run(tmp_path / "full", evaluate=("rates", "fixed"))
    assert all(not pair.condition.startswith("{") for pair in pairs_of(tmp_path))


def test_one_seed_is_said_to_be_one(tmp_path):
    sweep(tmp_path, {"zero": 2.0, "rohydr": 1.0}, seeds=(4,), evaluate=("rates",))
    pair = pairs_of(tmp_path)[0]
    assert "clips only (seed 4)" in pair.resampled() and "1 (clips only)" in comparisons.to_markdown([pair])


def test_another_missing_pattern_is_refused_and_said(tmp_path):
    sweep(tmp_path, {"zero": 2.0, "rohydr": 1.0}, seeds=(1,), evaluate=())
    stored = tmp_path / "zero" / "seed1" / "predictions" / "test-exact-0.5.npz"
    with np.load(stored) as arrays:
        np.savez(stored, **{**arrays, "missing": ~arrays["missing"]})
    [pair] = pairs_of(tmp_path)
    assert pair.comparison is None
    assert "RoHyDR and zero-fill: must have the same missing patterns" in comparisons.to_markdown([pair])
    assert len(comparisons.to_csv([pair]).splitlines()) == 1


def test_csv_has_points_for_accuracy_and_label_units_for_errors(methods):
    pair = next(pair for pair in pairs_of(methods) if pair.second == "zero-fill")
    rows = {row["metric"]: row for row in csv.DictReader(io.StringIO(comparisons.to_csv([pair])))}
    found = pair.comparison.differences
    assert float(rows["Non0_acc_2"]["difference"]) == pytest.approx(100 * found["Non0_acc_2"].estimate, abs=1e-5)
    assert float(rows["MAE"]["high"]) == pytest.approx(found["MAE"].high, abs=1e-5)
    assert rows["MAE"]["better"] == "RoHyDR" and rows["MAE"]["seeds"] == "3"
    assert int(rows["MAE"]["clips"]) > int(rows["Non0_acc_2"]["clips"])


def test_without_two_methods_there_is_nothing_to_compare(tmp_path):
    assert "no two methods" in comparisons.to_markdown(pairs_of(write_run(tmp_path / "run")))
