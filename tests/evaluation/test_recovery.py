"""How close recoveries come, on representations whose distance is known."""

import numpy as np
import pytest
import torch

from rohydr_fast.config import TrainConfig
from rohydr_fast.data.dataset import collate
from rohydr_fast.evaluation.predict import EVALUATION, inputs, predict
from rohydr_fast.evaluation.recovery import recovery_quality
from rohydr_fast.models.rohydr import Recovered
from rohydr_fast.models.sequences import Sequence
from rohydr_fast.ops.philox import derive_seed
from rohydr_fast.training.trainer import build_model
from tests.small_data import small_dataset

DATASET = small_dataset()


def without_audio(method: str = "zero"):
    model = build_model(TrainConfig(method=method).model_config(DATASET), 0, DATASET)
    missing = np.zeros((len(DATASET.test), 3), bool)
    missing[:, 0] = True
    return model, missing


@pytest.mark.parametrize(("factor", "mse", "cosine"), [(1.0, 0.0, 1.0), (0.5, 0.25, 1.0), (-1.0, 4.0, -1.0)])
def test_a_scaled_truth_has_a_known_distance(monkeypatch, factor, mse, cosine):
    model, missing = without_audio()
    features, lengths = torch.from_numpy(DATASET.test.features["a"]), torch.from_numpy(DATASET.test.lengths["a"])
    model.eval()
    with torch.no_grad():
        truth = model.extractors["a"](features, lengths)
    mean = truth.x[truth.mask()].mean(0)
    scaled = Sequence(mean + factor * (truth.x - mean), truth.lengths)
    rows = torch.arange(len(missing))
    monkeypatch.setattr(model, "recovered", lambda *a, **k: {"a": Recovered(rows, scaled, scaled)})
    found = recovery_quality(model, DATASET, DATASET.test, missing, seed=0)
    assert set(found) == {"a"}
    assert found["a"]["relative_mse"] == pytest.approx(mse, abs=1e-5)
    assert found["a"]["cosine"] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize("method", ["rohydr", "gcnet"])
def test_the_size_of_a_batch_changes_nothing(method):
    model, missing = without_audio(method)
    small, large = (predict(model, DATASET, DATASET.test, missing, seed=0, batch_size=size) for size in (1, 64))
    np.testing.assert_allclose(small.mean, large.mean, rtol=1e-4, atol=1e-5)
    small, large = (
        recovery_quality(model, DATASET, DATASET.test, missing, seed=0, batch_size=size)["a"] for size in (1, 64)
    )
    assert small == pytest.approx(large, rel=1e-3)


def test_every_draw_is_a_prediction_of_the_model():
    model, missing = without_audio("rohydr")
    drawn = predict(model, DATASET, DATASET.test, missing, seed=7, samples=3).draws
    clips = collate(DATASET.test, range(len(missing)), model.config.modalities)
    given = inputs(clips, torch.from_numpy(missing), "cpu")
    for k in range(3):
        with torch.no_grad():
            alone = model.eval()(**given, seed=derive_seed(7, EVALUATION, k))
        assert np.array_equal(drawn[:, k], alone.numpy())
    assert drawn.std(1).all()


def test_a_recovery_that_is_not_drawn_is_computed_once(monkeypatch):
    calls = []
    for method, expected in (("mean", 1), ("rohydr", 3)):
        model, missing = without_audio(method)
        sentiment = model.sentiment
        monkeypatch.setattr(model, "sentiment", lambda *a, f=sentiment, **k: calls.append(1) or f(*a, **k))
        found = predict(model, DATASET, DATASET.test, missing, seed=0, samples=3)
        assert len(calls) == expected and bool(found.std.any()) == (method == "rohydr")
        calls.clear()
