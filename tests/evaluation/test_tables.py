"""Tables: units, undefined cells, flags, and statistics over runs."""

import statistics

import pytest

from rohydr_fast.evaluation.metrics import metrics
from rohydr_fast.evaluation.tables import aggregate, aggregate_table, metrics_table

ROW = {"Non0_acc_2": 0.76633, "Non0_F1_score": 0.7546, "Mult_acc_7": 0.35, "MAE": 0.87125, "Corr": None, "n": 686}


def cells(table, line):
    return [cell.strip() for cell in table.splitlines()[line].strip("|").split("|")]


def test_one_run_shows_percent_and_a_dash_for_what_is_undefined():
    table = metrics_table({"exact 0.5": ROW})
    assert cells(table, 0) == ["", "ACC2", "F1", "ACC7", "MAE", "Corr"]
    assert cells(table, 2) == ["exact 0.5", "76.63", "75.46", "35.00", "0.8712", "-"]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_columns_are_chosen_and_may_be_other_keys():
    rows = {"{a|t}": ROW | {"realised": 0.5, "ok": True}}
    table = metrics_table(rows, (("n", "clips"), ("realised", "rate"), ("ok", "ok"), ("none", "none")))
    assert table.splitlines()[2].startswith("| {a\\|t}")
    assert table.splitlines()[2].split("|")[-5:-1] == ["   686 ", " 0.5000 ", " yes ", "    - "]


def test_a_constant_predictor_is_marked():
    table = metrics_table({"good": ROW, "dead": ROW | {"constant_prediction": True}})
    assert cells(table, 3)[0] == "dead *" and cells(table, 2)[0] == "good"
    assert "constant prediction" in table
    assert "constant prediction" not in metrics_table({"good": ROW})


def test_metrics_output_fits_the_table():
    assert cells(metrics_table({"x": metrics([1.0, -1.0], [2.0, -1.0])}), 2)[1:] == [
        "100.00",
        "100.00",
        "50.00",
        "0.5000",
        "1.0000",
    ]


def test_aggregate_gives_mean_sample_deviation_and_count():
    values = [0.71, 0.75, 0.78]
    runs = [{"r": {"Non0_acc_2": v, "Corr": c, "note": "x"}} for v, c in zip(values, (0.5, None, None), strict=True)]
    runs[0]["only"] = {"MAE": 1.0}
    result = aggregate(runs)
    expected = (statistics.mean(values), statistics.stdev(values), 3)
    assert result["r"]["Non0_acc_2"] == pytest.approx(expected)
    assert result["r"]["Corr"] == (0.5, None, 1)
    assert result["only"]["MAE"] == (1.0, None, 1)
    assert "note" not in result["r"]
    assert aggregate([{"r": {"Corr": None}}])["r"]["Corr"] == (None, None, 0)


def test_aggregate_table_says_how_many_runs_and_never_guesses():
    runs = [{"r": {"Non0_acc_2": 0.7, "MAE": 0.9}}, {"r": {"Non0_acc_2": 0.8, "MAE": None}}]
    columns = (("Non0_acc_2", "ACC2"), ("MAE", "MAE"), ("Corr", "Corr"))
    assert cells(aggregate_table(aggregate(runs), columns), 2) == ["r", "75.00 +- 7.07 (2)", "0.9000 (1)", "-"]
    assert cells(aggregate_table(aggregate(runs), columns, minimum_runs=2), 2)[1:] == ["75.00 +- 7.07 (2)", "-", "-"]


def test_aggregate_table_marks_a_row_that_is_constant_in_any_run():
    runs = [{"r": ROW | {"constant_prediction": flag}} for flag in (False, True)]
    assert cells(aggregate_table(aggregate(runs)), 2)[0] == "r *"
    assert cells(aggregate_table(aggregate(runs[:1])), 2)[0] == "r"
