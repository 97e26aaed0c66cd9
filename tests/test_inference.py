"""A trained model on clips of people's own: what it reads, what it gives, and what it refuses."""

import numpy as np
import pytest
import torch

from rohydr_fast.data import collate
from rohydr_fast.errors import UsageError
from rohydr_fast.evaluation.calibrate import calibrate
from rohydr_fast.evaluation.predict import EVALUATION, predict
from rohydr_fast.evaluation.uncertainty import conformal_radius
from rohydr_fast.inference import as_batch, infer_split
from rohydr_fast.models.rohydr import RoHyDR
from rohydr_fast.ops.philox import derive_seed
from tests.small_data import small_dataset
from tests.small_model import open_up, small_config

DATASET = small_dataset(valid=12, test=9)


def built(**changes) -> RoHyDR:
    torch.manual_seed(0)
    model = RoHyDR(small_config(**changes))
    open_up(model)
    return model


def batch(rows=range(5)):
    return collate(DATASET.test, rows, "atv")


def test_the_prediction_is_the_mean_of_the_models_over_the_draws():
    model, clips = built(), batch()
    missing = torch.tensor([[False, False, True]]).expand(5, 3)
    model.train()
    found = model.recover(clips, available="a,t", samples=3, seed=4)
    assert model.training
    seeds = [derive_seed(4, EVALUATION, k) for k in range(3)]
    with torch.no_grad():
        drawn = [model.eval()(clips.x, clips.lengths, missing, clips.sample_id, seed=seed) for seed in seeds]
    assert torch.equal(found.draws, torch.stack(drawn, 1)) and found.draws.std(1).all()
    torch.testing.assert_close(found.prediction, torch.stack(drawn).mean(0))
    assert (found.draws_low < found.prediction).all() and (found.prediction < found.draws_high).all()
    assert found.low is None and set(found.recovered) == {"v"}
    assert found.recovered["v"].rows.tolist() == list(range(5))


def test_what_is_recovered_is_the_mean_over_draws_of_each_clip():
    model, clips = built().eval(), batch()
    both = model.recover(clips, available="t", samples=2, seed=1).recovered["a"]
    sequences = model.extract(clips.x, clips.lengths, torch.tensor([[False, True, False]]).expand(5, 3))
    conditions = model.conditions(sequences, torch.tensor([[True, False, True]]).expand(5, 3))
    seeds = [derive_seed(1, EVALUATION, k) for k in range(2)]
    with torch.no_grad():
        drawn = [model.recovered(conditions, clips.sample_id, seed=seed)["a"].x.x for seed in seeds]
    torch.testing.assert_close(both.x.x, torch.stack(drawn).mean(0))


def test_what_is_not_available_is_not_read():
    model, clips, other = built(), batch(), batch()
    other.x["v"] = torch.full_like(other.x["v"], torch.nan)
    assert torch.equal(*(model.recover(b, available="a,t").prediction for b in (clips, other)))
    rows = torch.tensor([[True, True, False], [True, False, False], [False, True, True]])
    first = model.recover(batch(range(3)), available=rows)
    assert {m: r.rows.tolist() for m, r in first.recovered.items()} == {"a": [2], "t": [1], "v": [0, 1]}
    torch.testing.assert_close(first.prediction[:1], model.recover(batch([0]), available="a,t").prediction)


def test_nothing_missing_is_nothing_drawn():
    found = built().recover(batch(), samples=4)
    assert found.recovered == {} and found.draws.shape == (5, 4) and not found.draws.std(1).any()


@pytest.mark.parametrize("leading", [False, True])
def test_bare_features_are_a_batch(leading):
    model, clips = built(), batch()
    pad = (0, 0, 3, 2) if leading else (0, 0, 0, 5)
    features = {"audio": torch.nn.functional.pad(clips.x["a"], pad), "t": clips.x["t"].double().numpy()}
    bare = as_batch(features)
    assert bare.present.tolist() == [[True, True, False]] * 5
    for m in "at":
        assert torch.equal(bare.lengths[m], clips.lengths[m]) and torch.equal(bare.x[m], clips.x[m])
    clips.sample_id = torch.arange(5)
    torch.testing.assert_close(model.recover(features).prediction, model.recover(clips, "a,t").prediction)


def test_intervals_have_the_width_of_the_set_that_is_available():
    model = built()
    model.calibration = calibrate(model, DATASET, seed=3)
    assert set(model.calibration) == {"a", "t", "v", "a,t", "a,v", "t,v", "a,t,v"}
    missing = np.tile([True, False, True], (12, 1))
    errors = predict(model, DATASET, DATASET.valid, missing, seed=3).mean
    assert model.calibration["t"] == conformal_radius(errors, DATASET.valid.labels)
    rows = torch.tensor([[False, True, False], [True, True, False]])
    found = model.recover(batch(range(2)), available=rows)
    widths = torch.tensor([2 * model.calibration["t"], 2 * model.calibration["a,t"]])
    torch.testing.assert_close(found.high - found.low, widths)
    del model.calibration["t"]
    assert model.recover(batch(range(2)), available=rows).high.isinf().tolist() == [True, False]


def test_a_set_that_no_clip_has_is_not_calibrated():
    dataset = small_dataset(valid=12)
    dataset.valid.lengths["v"][:] = 0
    assert set(calibrate(built(), dataset, seed=3)) == {"a", "t", "a,t"}


@pytest.mark.parametrize("method", ["rohydr", "gcnet"])
def test_a_split_is_its_clips_in_their_order(method):
    model = built(method=method)
    model.calibration = {"a,t": 1.5}
    found = infer_split(model, DATASET, DATASET.test, "a,t", samples=2, seed=5)
    assert torch.equal(found["label"], torch.from_numpy(DATASET.test.labels))
    assert found["rows_v"].tolist() == list(range(9)) and len(found["recovered_v"]) == 9
    torch.testing.assert_close(found["high"] - found["low"], torch.full((9,), 3.0))
    whole = model.recover(collate(DATASET.test, range(9), "atv"), "a,t", samples=2, seed=5)
    torch.testing.assert_close(found["prediction"], whole.prediction)
    torch.testing.assert_close(found["recovered_v"], whole.recovered["v"].x.x)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({}, "must be of audio, text, vision, got none"),
        ({"smell": torch.ones(2, 3, 4)}, "smell"),
        ({"audio": torch.ones(2, 3)}, r"must be \(B, T, D\)"),
        ({"audio": torch.ones(2, 4, 3), "text": torch.ones(3, 4, 6)}, "with one B"),
        ({"audio": torch.ones(2, 4, 5)}, "audio must have 3 channels"),
        ({"audio": torch.ones(0, 4, 3)}, "must have a clip"),
        ({"audio": torch.ones(2, 0, 3)}, "T of 1 or more"),
        ({"audio": [[[1.0]], [[1.0], [2.0]]]}, "audio must be an array of numbers"),
        ({"audio": "loud"}, "audio must be an array of numbers"),
        ({"audio": torch.full((1, 4, 3), torch.inf)}, "audio must be finite where it is available.*clip 0"),
        ({"audio": torch.stack([torch.ones(4, 3), torch.zeros(4, 3)])}, "got none for clip 1"),
    ],
)
def test_features_that_do_not_fit_are_refused(features, words):
    with pytest.raises(UsageError, match=words):
        built().recover(features)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(samples=0), "samples must be 1 or more"),
        (dict(available="x"), "must name each of a, t, v"),
        (dict(available=torch.ones(5, 3)), "bool of shape"),
        (dict(available=torch.ones(4, 3, dtype=torch.bool)), "bool of shape"),
        (dict(available=torch.zeros(5, 3, dtype=torch.bool)), "got none for clip 0"),
    ],
)
def test_impossible_questions_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        built().recover(batch(), **arguments)
