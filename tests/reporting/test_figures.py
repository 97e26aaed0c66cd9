"""What each figure draws, and when there is none."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from rohydr_fast.reporting import figures
from rohydr_fast.reporting.collect import collect
from rohydr_fast.reporting.groups import group_runs, series_of
from tests.reporting.run_directories import sweep, write_run


@pytest.fixture
def drawn(monkeypatch):
    """The panels of each figure that is drawn, instead of pictures."""
    calls = []
    monkeypatch.setattr(figures, "draw", lambda rows: calls.append(rows) or "<svg/>")
    return calls


def made(path, name):
    groups, _ = group_runs(collect([path]).runs)
    found = {figure.name: figure for figure in figures.figures(groups, series_of(groups))}
    return found[name]


def panels(rows):
    return [panel for row in rows for panel in row]


def test_figure_3_has_a_band_over_seeds(tmp_path, drawn):
    figure = made(sweep(tmp_path, {"zero": 1.0, "rohydr": 1.0}, seeds=(1, 3), evaluate=()), "figure3")
    assert "lowest to highest" in figure.caption and "exact 0.5" in figure.caption
    accuracy, first_loss, second_loss = panels(drawn[0])
    assert [curve.label for curve in accuracy.curves] == ["zero-fill", "RoHyDR"] and accuracy.title == "by method"
    [curve, _] = accuracy.curves
    np.testing.assert_allclose(curve.x, [1, 2, 3])
    np.testing.assert_allclose(curve.low, [61, 71, 81])  # 50 + 10 * epoch + seed
    np.testing.assert_allclose(curve.y, [62, 72, 82])
    np.testing.assert_allclose(curve.high, [63, 73, 83])
    np.testing.assert_allclose(first_loss.curves[0].y, [2.2, 1.2, 2 / 3 + 0.2])
    np.testing.assert_allclose(second_loss.curves[0].y, [1, 0.5, 1 / 3])


def test_figure_3_by_strategy(tmp_path, drawn):
    for strategy in ("three-stage", "two-stage", "one-stage"):
        write_run(tmp_path / strategy, strategy=strategy, missing_rate="0.7", evaluate=())
    made(tmp_path, "figure3")
    titles = {panel.title: [curve.label for curve in panel.curves] for panel in drawn[0][0]}
    assert titles == {
        "by method": ["RoHyDR"],
        "by strategy": ["RoHyDR, one-stage", "RoHyDR, two-stage", "RoHyDR"],
    }


def test_figure_4_takes_runs_that_differ_in_one_weight_only(tmp_path, drawn):
    for value in (0.5, 1.0, 2.0):
        for seed in (1, 2):
            write_run(tmp_path / f"{value}-{seed}", seed=seed, lambda_g=value, evaluate=())
    write_run(tmp_path / "other", lambda_g=4.0, lr=0.1, evaluate=())
    made(tmp_path, "figure4")
    accuracy, error = panels(next(rows for rows in drawn if panels(rows)[0].x_label == "\u03bb_g"))
    np.testing.assert_allclose(accuracy.curves[0].x, [0.5, 1, 2])
    runs = [run for run in collect([tmp_path]).runs if run.settings.values["lambda_g"] == 2.0]
    values = [run.own.metrics["MAE"] for run in runs]
    assert error.curves[0].y[2] == pytest.approx(np.mean(values))
    assert error.curves[0].high[2] - error.curves[0].y[2] == pytest.approx(np.std(values, ddof=1))


def test_robustness_is_over_realised_rates(tmp_path, drawn):
    made(sweep(tmp_path, {"zero": 2.0}, seeds=(1, 2), evaluate=("rates",)), "robustness")
    accuracy, error = panels(drawn[1])
    rows = [run.evaluations[0].rows for run in collect([tmp_path]).runs]
    np.testing.assert_allclose(error.curves[0].x, np.mean([[row.rate for row in of_run] for of_run in rows], axis=0))
    expected = np.mean([[100 * row.metrics["Non0_acc_2"] for row in of_run] for of_run in rows], axis=0)
    np.testing.assert_allclose(accuracy.curves[0].y, expected)


def test_recovery_and_calibration_are_read_from_evaluations(tmp_path, drawn):
    extra = {
        "recovery": {"t": {"relative_mse": 0.9, "cosine": 0.3}},
        "uncertainty": {"conformal": {"nominal": 0.8, "coverage": 0.7, "mean_width": 1.5}},
    }
    path = write_run(tmp_path / "run", evaluate=("rates",), extra=extra)
    assert made(path, "recovery").svg and "0.8" in made(path, "calibration").caption
    by_label = {panel.y_label: panel for rows in drawn for panel in panels(rows)}
    assert by_label["error over variance"].title == "text" and set(by_label["cosine, centred"].curves[0].y) == {0.3}
    assert set(by_label["share of labels inside"].curves[0].y) == {0.7}
    assert by_label["share of labels inside"].level == 0.8


def test_a_figure_without_data_says_what_it_needs(tmp_path):
    path = write_run(tmp_path / "run", evaluate=())
    for name, words in {
        "figure4": "two values of one of lambda_g",
        "robustness": "two or more missing rates",
        "recovery": "No evaluation",
        "calibration": "No evaluation",
    }.items():
        figure = made(path, name)
        assert figure.svg is None and words in figure.caption


def test_the_same_data_give_the_same_svg_and_text_is_inert():
    curve = figures.Curve("<script>$x$ & a very long label " * 4, *(np.arange(3.0) for _ in range(4)))
    rows = [[figures.Panel("title", "epoch", "y", (curve,))]]
    svg = figures.draw(rows)
    assert svg == figures.draw(rows)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and not [part for part in root.iter() if "script" in str(part.tag)]
    assert "<script>$x$ & a very" in "".join(root.itertext())
