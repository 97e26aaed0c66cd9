"""Metrics against scikit-learn, against numbers worked out by hand, and at their edges."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from rohydr_fast.errors import DataError, UsageError
from rohydr_fast.evaluation.metrics import majority_metrics, metrics, weighted_f1

# Quarters make exact zeros and ties at .5 common.
quarters = st.integers(-16, 16).map(lambda i: i / 4)
clips = st.lists(st.tuples(quarters, quarters), min_size=1, max_size=60)


@given(pairs=clips)
@settings(max_examples=200, deadline=None)
def test_agrees_with_scikit_learn(pairs):
    predictions, labels = np.array(pairs).T
    result = metrics(predictions, labels)
    assert result["Has0_acc_2"] == pytest.approx(accuracy_score(labels >= 0, predictions >= 0))
    assert result["Has0_F1_score"] == pytest.approx(f1_score(labels >= 0, predictions >= 0, average="weighted"))
    signed = labels != 0
    if signed.any():
        true, predicted = labels[signed] > 0, predictions[signed] > 0
        assert result["Non0_acc_2"] == pytest.approx(accuracy_score(true, predicted))
        assert result["Non0_F1_score"] == pytest.approx(f1_score(true, predicted, average="weighted"))
    else:
        assert result["Non0_acc_2"] is None and result["Non0_F1_score"] is None
    for name, limit in (("Mult_acc_7", 3), ("Mult_acc_5", 2)):
        true, predicted = (np.round(np.clip(values, -limit, limit)) for values in (labels, predictions))
        assert result[name] == pytest.approx(accuracy_score(true, predicted))
    assert result["MAE"] == pytest.approx(np.mean(np.abs(predictions - labels)))
    if len(labels) > 1 and np.ptp(labels) and np.ptp(predictions):
        assert result["Corr"] == pytest.approx(np.corrcoef(predictions, labels)[0, 1], nan_ok=True)
    else:
        assert result["Corr"] is None
    json.dumps(result, allow_nan=False)


def test_f1_takes_the_truth_first():
    true, predicted = np.array([1, 1, 1, 1, 0], dtype=bool), np.array([1, 1, 0, 0, 0], dtype=bool)
    # Positive: 2*2/(4+2) = 2/3, support 4. Negative: 2*1/(1+3) = 1/2, support 1.
    assert weighted_f1(true, predicted) == pytest.approx((4 * 2 / 3 + 1 / 2) / 5)
    assert weighted_f1(predicted, true) == pytest.approx((2 * 2 / 3 + 3 / 2) / 5)
    swapped = f1_score(predicted, true, average="weighted")
    ours = metrics(np.where(predicted, 1.0, -1.0), np.where(true, 1.0, -1.0))["Non0_F1_score"]
    assert ours != pytest.approx(swapped)
    assert ours == pytest.approx(f1_score(true, predicted, average="weighted"))


def test_a_worked_example():
    labels = np.array([-2.4, 0.0, 1.0, 2.6, -0.2])
    predictions = np.array([-1.6, -0.5, 0.4, 3.9, 0.2])
    result = metrics(predictions, labels)
    assert result["Has0_acc_2"] == pytest.approx(3 / 5)  # the neutral clip and the last one are wrong
    assert result["Non0_acc_2"] == pytest.approx(3 / 4)
    assert result["Mult_acc_7"] == pytest.approx(4 / 5)  # -2=-2, -0=0, 0!=1, 3=3, 0=-0
    assert result["Mult_acc_5"] == pytest.approx(4 / 5)
    assert result["MAE"] == pytest.approx((0.8 + 0.5 + 0.6 + 1.3 + 0.4) / 5)
    assert result["n"] == 5 and result["constant_prediction"] is False


@pytest.mark.parametrize(("prediction", "rounds_to"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (3.7, 3)])
def test_classes_round_half_to_even_after_clipping(prediction, rounds_to):
    assert metrics(np.array([prediction]), np.array([float(rounds_to)]))["Mult_acc_7"] == 1.0
    assert metrics(np.array([prediction]), np.array([rounds_to - 1.0]))["Mult_acc_7"] == 0.0


def test_a_label_of_zero_is_positive_for_has0_and_left_out_of_non0():
    result = metrics(np.array([0.1, 0.0, -0.1]), np.zeros(3))
    assert result["Has0_acc_2"] == pytest.approx(2 / 3)
    assert result["Non0_acc_2"] is None and result["Non0_F1_score"] is None and result["Corr"] is None


def test_a_constant_predictor_is_flagged_although_its_accuracy_looks_good():
    labels = np.array([1.0, 2.0, 1.0, -1.0])
    result = metrics(np.array([0.5, 0.5, 0.5, 0.5 + 6e-8]), labels)
    assert result["constant_prediction"] is True and result["Corr"] is None
    assert result["Non0_acc_2"] == 0.75
    assert metrics(labels + 0.1, labels)["constant_prediction"] is False


def test_huge_predictions_still_have_their_correlation():
    predictions, labels = np.array([1.0, -1.0, 0.0]), np.array([1.0, -1.0, 0.5])
    assert metrics(1e300 * predictions, labels)["Corr"] == pytest.approx(metrics(predictions, labels)["Corr"])


def test_a_single_clip_has_no_correlation():
    result = metrics(np.array([[0.7]]), np.array([1.0]))
    assert result["Corr"] is None and result["n"] == 1 and result["constant_prediction"] is False
    assert result["MAE"] == pytest.approx(0.3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_prediction_that_is_not_finite_is_an_error_with_its_row(bad):
    with pytest.raises(DataError, match=r"predictions must be finite, got -?(nan|inf) in row 1 \(2 of 3"):
        metrics(np.array([0.0, bad, bad]), np.zeros(3))
    with pytest.raises(DataError, match="labels must be finite"):
        metrics(np.zeros(3), np.array([0.0, bad, 1.0]))


def test_shapes_that_disagree_are_refused():
    with pytest.raises(UsageError, match="for each of 4 labels, got 3"):
        metrics(np.zeros(3), np.zeros(4))
    with pytest.raises(UsageError, match=r"must have the shape \(N,\) or \(N, 1\), got \(3, 2\)"):
        metrics(np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(DataError, match="at least one clip"):
        metrics(np.zeros(0), np.zeros(0))


def test_majority_answers_the_training_median_and_sign():
    train = np.array([-1.0, -2.0, -0.4, 0.0, 3.0])  # median -0.4; negatives 3 of 5, and 3 of 4 without the zero
    labels = np.array([-0.2, 1.0, 0.0, -3.0])
    result = majority_metrics(train, labels)
    assert result["MAE"] == pytest.approx((0.2 + 1.4 + 0.4 + 2.6) / 4)
    assert result["Mult_acc_7"] == pytest.approx(2 / 4)  # everything rounds to 0
    assert result["Has0_acc_2"] == pytest.approx(2 / 4)
    assert result["Non0_acc_2"] == pytest.approx(2 / 3)
    assert result["Non0_F1_score"] == pytest.approx(f1_score([0, 1, 0], [0, 0, 0], average="weighted"))
    assert result["Corr"] is None and result["constant_prediction"] is True and result["n"] == 4


def test_majority_may_differ_between_the_two_binary_metrics():
    result = majority_metrics(np.array([0.0, 0.0, 0.0, -1.0, -1.0, 1.0]), np.array([1.0, 1.0, -1.0]))
    assert result["Has0_acc_2"] == pytest.approx(2 / 3)  # majority: not negative
    assert result["Non0_acc_2"] == pytest.approx(1 / 3)  # majority: negative
