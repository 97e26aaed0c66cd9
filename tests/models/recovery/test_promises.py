"""Every method of recovery, by what all of them promise: what they may read, and what a recovery may depend on."""

import json
import math
from pathlib import Path

import pytest
import torch

from rohydr_fast.config import PARTS_ABSENT, TrainConfig
from rohydr_fast.errors import UsageError
from rohydr_fast.models.recovery import METHOD_CLASSES
from rohydr_fast.models.rohydr import RoHyDR
from rohydr_fast.training.trainer import model_of, tensors_of
from tests.small_data import small_dataset
from tests.small_model import open_up, small_batch, small_config

MISSING = torch.tensor([[True, False, False], [False, True, True], [False, False, False], [True, True, False]])
VARIANTS = {method: {"method": method} for method in sorted(METHOD_CLASSES)}
VARIANTS |= {"mean of draws": {"draws": 3}, "anchored": {"anchor": "regress"}}


def build(variant: str) -> RoHyDR:
    torch.manual_seed(0)
    model = RoHyDR(small_config(**VARIANTS[variant], without=PARTS_ABSENT.get(variant, ()), train_clips=10))
    open_up(model)
    model.eval()  # no dropout in what the method observes
    x, lengths, ids = small_batch()
    present = torch.ones(4, 3, dtype=torch.bool)
    model.recovery.observe(model.extract(x, lengths, present), ids)
    return model


@pytest.mark.parametrize("garbage", [1e6, math.nan, math.inf])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_content_of_a_missing_modality_changes_no_bit(variant, garbage):
    model, (x, lengths, ids) = build(variant), small_batch()
    clean = model(x, lengths, MISSING, ids)
    for i, m in enumerate("atv"):
        x = {**x, m: torch.where(MISSING[:, i, None, None], garbage, x[m])}
        lengths = {**lengths, m: torch.where(MISSING[:, i], 1, lengths[m])}
    assert torch.isfinite(clean).all()
    assert torch.equal(model(x, lengths, MISSING, ids), clean)


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_training_too_what_is_withheld_changes_no_bit(variant):
    """The batch holds the ground truth of what is withheld; only the indicator keeps a method from reading it."""
    model, (x, lengths, ids) = build(variant), small_batch()
    everything, conversation = torch.ones(4, 3, dtype=torch.bool), torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3]])

    def recovered(x):
        sequences = model.extract(x, lengths, everything)
        conditions = model.conditions(sequences, MISSING, conversation)
        return model.recovered(conditions, ids, seed=0)

    clean = recovered(x)
    other = recovered({m: torch.where(MISSING[:, i, None, None], 1e3, x[m]) for i, m in enumerate("atv")})
    assert clean.keys() == other.keys() and bool(clean) == (variant != "dropout")
    for m in clean:
        assert torch.equal(clean[m].x.x, other[m].x.x), m


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_clip_does_not_depend_on_its_neighbours_or_its_padding(variant):
    model, (x, lengths, ids) = build(variant), small_batch()
    together = model(x, lengths, MISSING, ids)
    for i in range(4):
        alone_x = {m: value[i : i + 1, : int(lengths[m][i])] for m, value in x.items()}
        padded = {m: torch.nn.functional.pad(value, (0, 0, 0, 4), value=9.0) for m, value in alone_x.items()}
        for given in (alone_x, padded):
            alone = model(given, {m: n[i : i + 1] for m, n in lengths.items()}, MISSING[i : i + 1], ids[i : i + 1])
            torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_comes_back_from_its_description_and_its_tensors(variant):
    model, (x, lengths, ids) = build(variant), small_batch()
    document = json.loads(json.dumps(model.config.to_dict()))
    other = model_of(document, tensors_of(model), Path("saved")).eval()
    assert torch.equal(other(x, lengths, MISSING, ids), model(x, lengths, MISSING, ids))


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_seed_gives_another_recovery_where_recoveries_are_drawn_and_only_there(variant):
    model, (x, lengths, ids) = build(variant), small_batch()
    first, again, other = (model(x, lengths, MISSING, ids, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) != model.recovery.draws


def test_zero_is_rohydr_without_hddm_and_ur():
    settings = [TrainConfig(method="zero"), TrainConfig(without="hddm,ur")]
    built = []
    for config in settings:
        torch.manual_seed(0)
        built.append(RoHyDR(config.model_config(small_dataset())))
    first, second = ({name: p for name, p in model.named_parameters()} for model in built)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_mean_is_the_mean_of_the_ground_truth():
    model, (x, lengths, ids) = build("mean"), small_batch()
    sequences = model.extract(x, lengths, torch.ones(4, 3, dtype=torch.bool))
    known = model.extract(x, lengths, ~MISSING)
    recovered = model.recovered(model.conditions(known, MISSING), ids, seed=0)
    for m, (_, x_rec, _) in recovered.items():
        tokens = sequences[m].x[sequences[m].mask()]
        expected = tokens.mean(0).expand(int(x_rec.lengths[0]), -1)
        torch.testing.assert_close(x_rec.x[0, : x_rec.lengths[0]], expected)
        assert not x_rec.x[~x_rec.mask()].any()


def test_dropout_keeps_a_missing_modality_away():
    model, (x, lengths, ids) = build("dropout"), small_batch()
    assert model.recovered(model.conditions(model.extract(x, lengths, ~MISSING), MISSING), ids, seed=0) == {}
    assert model.ur is None and model.mr is None and model.discriminator is None


def test_an_unknown_method_and_a_part_that_a_method_lacks_are_refused():
    with pytest.raises(UsageError, match="--method: must be one of rohydr"):
        TrainConfig(method="magic")
    with pytest.raises(UsageError, match="hddm is a part of rohydr"):
        small_config(method="mean", without=("hddm",))
