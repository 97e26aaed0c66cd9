"""Confusion, calibration by class, and the cards of single clips."""

import numpy as np
import pytest

from rohydr_fast.reporting import details
from rohydr_fast.reporting.collect import collect
from rohydr_fast.reporting.groups import group_runs, series_of
from tests.reporting.run_directories import CLIPS, clip_labels, sweep, write_run


def series_in(path):
    groups, _ = group_runs(collect([path]).runs)
    return series_of(groups)


def stored(path, stem) -> dict:
    with np.load(path / "predictions" / f"test-{stem}.npz") as arrays:
        return dict(arrays)


def test_confusion_and_bins_are_counted_over_all_seeds(tmp_path):
    root = sweep(tmp_path, {"zero": 2.0}, seeds=(1, 2))
    [behaviour] = details.behaviours(series_in(root))
    assert (behaviour.label, behaviour.condition) == ("zero-fill", "0.5")
    expected = np.zeros((7, 7), int)
    for seed in (1, 2):
        found = stored(root / "zero" / f"seed{seed}", "rates-exact-0.5")
        for label, prediction in zip(found["label"], found["prediction"], strict=True):
            expected[round(float(label)) + 3, round(min(3.0, max(-3.0, float(prediction)))) + 3] += 1
    np.testing.assert_array_equal(behaviour.confusion, expected)
    assert behaviour.confusion.sum() == sum(part.clips for part in behaviour.bins) == 2 * CLIPS
    part = behaviour.bins[0]
    runs = [stored(root / "zero" / f"seed{seed}", "rates-exact-0.5") for seed in (1, 2)]
    inside = np.concatenate([run["prediction"][np.round(run["label"]) == -3] for run in runs])
    assert part.name == -3 and part.prediction == pytest.approx(float(inside.mean()), rel=1e-5)


def test_cards_spread_over_the_labels_and_show_every_condition(tmp_path):
    path = write_run(tmp_path / "run", seed=4)
    label, seed, cards = details.cards(series_in(path))
    assert (label, seed, len(cards)) == ("RoHyDR", 4, 20)
    assert [card.label for card in cards] == sorted(card.label for card in cards)
    assert (cards[0].label, cards[-1].label) == (clip_labels().min(), clip_labels().max())
    assert len(cards[0].predictions) == 8 + 7
    found = stored(path, "fixed-a-v")
    row = found["id"].tolist().index(cards[5].clip)
    by_condition = {condition: (prediction, missing) for condition, prediction, missing in cards[5].predictions}
    assert by_condition["{a,v}"] == (float(found["prediction"][row]), "t")
    assert by_condition["{a,t,v}"][1] == ""


def test_runs_that_no_table_has_give_neither(tmp_path):
    series = series_in(write_run(tmp_path / "run", missing_rate="mixed", evaluate=()))
    assert details.behaviours(series) == [] and details.cards(series) == ("", None, [])
