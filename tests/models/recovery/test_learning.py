"""Each method that learns does learn: on clips where the missing modality follows from another it beats the mean."""

import math

import pytest
import torch

from rohydr_fast.models.recovery import METHOD_CLASSES
from rohydr_fast.models.sequences import Sequence, token_mask, zero_padding
from tests.models.recovery.learning import CLIPS, TOKENS, build, clips, relative_error, supervise, train
from tests.small_model import open_up, small_config

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


@pytest.mark.parametrize("method", [name for name, method in METHOD_CLASSES.items() if method.divides])
def test_the_parts_of_a_loss_in_several_processes_add_up(method):
    """Of 64 clips of different lengths one process has 20 and another 44; each weighs its mean by its share."""
    recovery = build(method, dropout=0.0)
    open_up(recovery)
    sequences = clips(small_config())
    lengths = 1 + torch.arange(CLIPS) % TOKENS
    sequences = {m: Sequence(zero_padding(s.x, token_mask(lengths, TOKENS)), lengths) for m, s in sequences.items()}
    recovery.observe(sequences, torch.arange(CLIPS))
    whole = recovery.loss(supervise(recovery, sequences))
    tokens = int(lengths.sum())
    parts = []
    for first, last in ((0, 20), (20, CLIPS)):
        share = int(lengths[first:last].sum()) / tokens
        given = supervise(recovery, sequences, first=first, last=last)._replace(shares={"v": (share, share)})
        parts.append(recovery.loss(given))
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-6)
    assert bool(whole > 0) == bool(list(recovery.parameters()))


@pytest.mark.parametrize("method", [*LEARNERS, "imder", "dicmor", "rohydr"])
def test_every_parameter_of_a_modality_gets_a_gradient(method):
    recovery = build(method, dropout=0.0)
    train(recovery, steps=3)  # zero gates hide what lies behind them at first
    of_v = {name: p for name, p in recovery.named_parameters() if "v" in name.split(".")}
    # What E makes of v is for other modalities to read.
    silent = [name for name, p in of_v.items() if "condition" not in name and (p.grad is None or not p.grad.any())]
    # The network of a regression reads zeros in the place of x_t, so that the weight on x_t has nothing to learn.
    assert of_v and silent == (["regressor.v.denoiser.embed.weight"] if method == "regress" else [])
