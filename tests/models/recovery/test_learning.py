"""Each method that learns does learn: on clips where the missing modality follows from another it beats the mean."""

import math

import pytest
import torch

from tests.models.recovery.learning import build, relative_error, train

LEARNERS = ["regress", "mmin", "gcnet", "mtmsa"]


@pytest.mark.parametrize("method", LEARNERS)
def test_a_deterministic_method_learns_a_linear_relation(method):
    recovery = build(method, dropout=0.0)
    losses = train(recovery)
    assert losses[-1] < 0.5 * losses[0]
    assert relative_error(recovery) < 0.5  # the mean stands at 1


@pytest.mark.parametrize("method", ["imder", "rohydr"])
def test_a_drawn_recovery_learns_it_too(method):
    recovery = build(method, chain_steps=20)
    losses = train(recovery, steps=300)
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    # A draw that knew nothing would have the deviation of the data and stand at 2.
    assert relative_error(recovery) < 1.5


def test_a_regression_and_diffusion_of_what_it_leaves_learn_it_together():
    recovery = build("rohydr", anchor="regress", chain_steps=20)
    losses = train(recovery, steps=300)
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    # The residual alone would stand at 2, the anchor alone at 1; what is drawn has the size of what is left.
    assert relative_error(recovery) < 0.8
    assert all(recovery.hddm["v"].norm.std < 0.9 * recovery.norm["v"].std)


def test_the_flow_learns_the_density():
    recovery = build("dicmor")
    losses = train(recovery, steps=100)
    # Unit normal channels have 0.5 log(2 pi e) nats each, in three modalities; below that it has found structure.
    assert losses[-1] < losses[0] and losses[-1] < 3 * 0.5 * math.log(2 * math.pi * math.e) + 0.1
    assert torch.isfinite(torch.tensor(losses)).all()


@pytest.mark.parametrize("method", [*LEARNERS, "imder", "dicmor", "rohydr"])
def test_every_parameter_of_a_modality_gets_a_gradient(method):
    recovery = build(method, dropout=0.0)
    train(recovery, steps=3)  # zero gates hide what lies behind them at first
    of_v = {name: p for name, p in recovery.named_parameters() if "v" in name.split(".")}
    # What E makes of v is for other modalities to read.
    silent = [name for name, p in of_v.items() if "condition" not in name and (p.grad is None or not p.grad.any())]
    # The network of a regression reads zeros in the place of x_t, so that the weight on x_t has nothing to learn.
    assert of_v and silent == (["regressor.v.denoiser.embed.weight"] if method == "regress" else [])
