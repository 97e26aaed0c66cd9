"""The assembled model at test time: what it may read, and what its result may depend on."""

import pytest
import torch

from rohydr_fast import backend
from rohydr_fast.config import ModelConfig
from rohydr_fast.errors import DataError, UsageError
from rohydr_fast.models.rohydr import PARTS, RoHyDR
from tests.native_spy import needs_core, spy_on_core
from tests.small_model import DIMS, small_config

MISSING = torch.tensor([[True, False, False], [False, True, True], [False, False, False], [True, True, False]])


def test_the_content_of_an_available_modality_matters(model, batch):
    x, lengths, ids = batch
    clean = model(x, lengths, MISSING, ids)
    changed = model({**x, "v": x["v"] + 1}, lengths, MISSING, ids)
    available = ~MISSING[:, 2]
    assert (changed != clean)[available].all() and torch.equal(changed[~available], clean[~available])


def test_noise_depends_on_the_seed_and_the_sample_only_where_something_is_missing(model, batch):
    x, lengths, ids = batch
    first, other = (model(x, lengths, MISSING, ids, seed=seed) for seed in (0, 1))
    something = MISSING.any(1)
    assert torch.equal(first, model(x, lengths, MISSING, ids, seed=0))
    assert (first != other)[something].all() and torch.equal(first[~something], other[~something])
    renamed = model(x, lengths, MISSING, ids + 100)
    assert (renamed != first)[something].all()


def test_nothing_missing_runs_no_chain(model, batch, monkeypatch):
    x, lengths, ids = batch
    monkeypatch.setattr(type(model.hddm["a"]), "request", lambda *a, **k: pytest.fail("a chain was asked for"))
    model(x, lengths, torch.zeros(4, 3, dtype=torch.bool), ids)


@needs_core
def test_all_missing_modalities_are_recovered_by_one_native_call(model, batch, monkeypatch):
    x, lengths, ids = batch
    calls = spy_on_core(monkeypatch)
    with torch.no_grad():
        found = model(x, lengths, MISSING, ids)
        assert [(call.op, call.chains) for call in calls] == [("reverse_loop", 3)]
        model(x, lengths, torch.tensor([[True, False, False]] * 4), ids)
        assert [call.chains for call in calls] == [3, 1]
        with backend("reference"):
            expected = model(x, lengths, MISSING, ids)
    assert len(calls) == 2
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@needs_core
@pytest.mark.parametrize("grad_steps", [None, 1, 0])
def test_recovering_and_its_gradient_are_one_native_call_each(grad_steps, model, batch, monkeypatch):
    x, lengths, ids = batch
    calls = spy_on_core(monkeypatch)
    conditions = model.conditions(model.extract(x, lengths, ~MISSING), MISSING)
    recovered = model.recovered(conditions, ids, seed=0, grad_steps=grad_steps)
    sum(part.x.x.square().sum() for part in recovered.values()).backward()  # through UR in any case
    with_gradient = grad_steps != 0
    expected = [("reverse_loop", 3, 3), ("reverse_loop_backward", 3, 3)] if with_gradient else [("reverse_loop", 3, 0)]
    assert [(call.op, call.chains, call.tapes) for call in calls] == expected
    assert (model.hddm["a"].denoiser.out.weight.grad is not None) == with_gradient


@needs_core
def test_recovering_keeps_no_more_than_it_may(model, batch, monkeypatch):
    x, lengths, ids = batch
    calls = spy_on_core(monkeypatch)
    conditions = model.conditions(model.extract(x, lengths, ~MISSING), MISSING)
    for memory, tapes in ((10**4, 0), (10**9, 3)):  # a gradient takes 7 kB for x_t alone
        model.recovered(conditions, ids, seed=0, max_memory=memory)
        assert calls[-1].tapes == tapes
    with pytest.raises(UsageError, match="max_memory must be at least"):
        model.recovered(conditions, ids, seed=0, max_memory=1000)


def test_a_missing_modality_takes_the_length_of_its_aligned_partner(batch):
    x, lengths, ids = batch
    torch.manual_seed(0)
    model = RoHyDR(small_config(aligned_groups=(("a", "v"),)))
    sequences = model.extract(x, lengths, ~MISSING)
    conditions = model.conditions(sequences, MISSING)
    assert conditions["a"].lengths.tolist() == [7, 3]  # clips 0 and 3: those of vision
    assert conditions["v"].lengths.tolist() == [3]  # clip 1: that of audio
    assert conditions["t"].lengths.tolist() == [6, 6]  # no partner: the data set's


def test_recovered_rows_replace_the_ground_truth_and_leave_the_rest(model, batch):
    x, lengths, ids = batch
    sequences = model.extract(x, lengths, torch.ones(4, 3, dtype=torch.bool))
    recovered = model.recovered(model.conditions(sequences, MISSING), ids, seed=0)
    completed = model.complete(sequences, recovered)
    for i, m in enumerate("atv"):
        kept = ~MISSING[:, i]
        tokens = sequences[m].x.shape[1]
        assert torch.equal(completed[m].x[kept, :tokens], sequences[m].x[kept])
        assert not completed[m].x[kept, tokens:].any()
        rows = recovered[m].rows
        assert rows.tolist() == MISSING[:, i].nonzero()[:, 0].tolist()
        assert torch.equal(completed[m].x[rows, : recovered[m].x.x.shape[1]], recovered[m].x.x)
        assert torch.equal(completed[m].lengths[rows], recovered[m].x.lengths)


@pytest.mark.parametrize("modalities", [("a", "t"), ("t", "v"), ("a", "t", "v")])
def test_any_two_or_three_modalities_make_a_model(batch, modalities):
    x, lengths, ids = batch
    model = RoHyDR(small_config(modalities=modalities)).eval()
    missing = MISSING | torch.tensor([[m not in modalities for m in "atv"]])
    missing[:, "atv".index(modalities[0])] = False
    assert torch.isfinite(model(x, lengths, missing, ids)).all()
    assert model.fusion.features == len(modalities) * (len(modalities) - 1) * 8


def test_one_modality_alone_is_refused():
    with pytest.raises(DataError, match="at least two modalities"):
        small_config(modalities=("t",))


@pytest.mark.parametrize("without", [("hddm",), ("ur",), ("d",), ("mr",), ("hddm", "ur"), ("hddm", "ur", "d", "mr")])
def test_each_part_can_be_taken_out(batch, without):
    x, lengths, ids = batch
    model = RoHyDR(small_config(without=without)).eval()
    assert torch.isfinite(model(x, lengths, MISSING, ids)).all()
    absent = {"hddm": "theta_mu_sigma", "ur": "theta_ur", "d": "theta_d", "mr": "theta_mr"}
    assert all(not model.parameters_of(absent[switch]) for switch in without)


def test_without_hddm_and_ur_the_representation_is_zero(batch):
    x, lengths, ids = batch
    model = RoHyDR(small_config(without=("hddm", "ur")))
    sequences = model.extract(x, lengths, ~MISSING)
    recovered = model.recovered(model.conditions(sequences, MISSING), ids, seed=0)
    assert all(not part.x.x.any() for part in recovered.values())


def test_the_named_parts_are_all_parameters_once(model):
    named = [p for part in PARTS for p in model.parameters_of(part)]
    assert len(named) == len({id(p) for p in named}) == len(list(model.parameters()))


def test_config_survives_json_and_refuses_what_it_does_not_know():
    import json

    config = small_config(aligned_groups=(("a", "t"),), without=("d",))
    document = json.loads(json.dumps(config.to_dict()))
    assert ModelConfig.from_dict(document) == config
    for broken in ({**document, "extra": 1}, {**document, "width": "wide"}, {**document, "dims": 3}, {}, None):
        with pytest.raises(DataError, match="checkpoint"):
            ModelConfig.from_dict(broken)


def test_impossible_shapes_are_refused():
    for changes in (dict(width=18), dict(channels=6), dict(chain_steps=0), dict(without=("x",)), dict(outputs=2)):
        with pytest.raises(UsageError, match="must"):
            RoHyDR(small_config(**changes))


def test_classes_predict_their_expected_value(batch):
    x, lengths, ids = batch
    model = RoHyDR(small_config(outputs=7)).eval()
    assert model(x, lengths, MISSING, ids).abs().max() <= 3
    logits = torch.full((1, 7), -100.0)
    logits[0, 5] = 100.0
    assert model.classifier.sentiment(logits).item() == pytest.approx(2.0)


def test_dims_are_those_of_the_data(model):
    assert {m: e.conv.in_channels for m, e in model.extractors.items()} == DIMS
