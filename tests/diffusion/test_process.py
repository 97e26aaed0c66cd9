"""Eq. 3: the forward process and the three forms of its loss."""

import math

import pytest
import torch

from rohydr_fast.diffusion.process import DiffusionProcess
from rohydr_fast.diffusion.schedule import Schedule
from rohydr_fast.errors import UsageError

SCHEDULE = Schedule(num_steps=3, beta_start=0.1, beta_end=0.3)  # betas .1 .2 .3
ABAR = [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]
ONE = torch.ones(1, 1, 1)
MASK = torch.ones(1, 1, dtype=torch.bool)


def test_forward_sample_by_hand():
    process = DiffusionProcess(SCHEDULE)
    drawn = process.sample(2 * ONE, torch.tensor([2]), -1 * ONE, 0.5 * ONE)
    x_t = math.sqrt(ABAR[1]) * 2 - math.sqrt(1 - ABAR[1])
    mean = math.sqrt(ABAR[0]) * 0.2 / (1 - ABAR[1]) * 2 + math.sqrt(0.8) * (1 - ABAR[0]) / (1 - ABAR[1]) * x_t
    deviation = math.sqrt(0.2 * (1 - ABAR[0]) / (1 - ABAR[1]))
    assert drawn.x_t.item() == pytest.approx(x_t, rel=1e-6)
    assert drawn.mean.item() == pytest.approx(mean, rel=1e-6)
    assert drawn.x_previous.item() == pytest.approx(mean + 0.5 * deviation, rel=1e-6)


def test_at_the_first_step_x_previous_is_x_0():
    drawn = DiffusionProcess(SCHEDULE).sample(2 * ONE, torch.tensor([1]), -1 * ONE, 7 * ONE)
    assert drawn.x_previous.item() == pytest.approx(2, rel=1e-6)


def test_nll_and_kl_by_hand():
    drawn = DiffusionProcess(SCHEDULE).sample(2 * ONE, torch.tensor([2]), -1 * ONE, 0.5 * ONE)
    eps, v = 0.3, 0.2
    mu = (drawn.x_t.item() - 0.2 / math.sqrt(1 - ABAR[1]) * eps) / math.sqrt(0.8)
    posterior = 0.2 * (1 - ABAR[0]) / (1 - ABAR[1])
    log_var = 0.6 * math.log(0.2) + 0.4 * math.log(posterior)
    nll = (drawn.x_previous.item() - mu) ** 2 / (2 * math.exp(log_var)) + 0.5 * log_var
    ratio = posterior / math.exp(log_var)
    kl = 0.5 * ((drawn.mean.item() - mu) ** 2 / math.exp(log_var) + ratio - math.log(ratio) - 1)
    for loss, expected in (("nll", nll), ("kl", kl), ("hybrid", (eps + 1) ** 2 + kl)):
        value = DiffusionProcess(SCHEDULE, loss=loss).eq3_loss(drawn, eps * ONE, v * ONE, MASK)
        assert value.item() == pytest.approx(expected, rel=1e-5), loss


def test_nll_is_the_kl_plus_the_entropy_of_q_in_expectation():
    generator = torch.Generator().manual_seed(0)
    n = 400_000
    x_0, eps = 2 * torch.ones(n, 1, 1), -torch.ones(n, 1, 1)
    previous = torch.randn(n, 1, 1, generator=generator)
    prediction, v, mask = 0.3 * torch.ones(n, 1, 1), 0.2 * torch.ones(n, 1, 1), torch.ones(n, 1, dtype=torch.bool)
    t = torch.full((n,), 2)
    values = {}
    for loss in ("nll", "kl"):
        process = DiffusionProcess(SCHEDULE, loss=loss)
        values[loss] = process.eq3_loss(process.sample(x_0, t, eps, previous), prediction, v, mask).item()
    entropy = 0.5 + 0.5 * math.log(0.2 * (1 - ABAR[0]) / (1 - ABAR[1]))  # of q, without the constant of Eq. 3
    assert values["nll"] == pytest.approx(values["kl"] + entropy, abs=0.01)


def test_kl_is_zero_only_at_the_posterior():
    process = DiffusionProcess(SCHEDULE, loss="kl")
    drawn = process.sample(2 * ONE, torch.tensor([3]), -1 * ONE, ONE)
    assert process.eq3_loss(drawn, -1 * ONE, -1 * ONE, MASK).item() == pytest.approx(0, abs=1e-6)
    assert process.eq3_loss(drawn, -0.9 * ONE, -1 * ONE, MASK).item() > 1e-4
    assert process.eq3_loss(drawn, -1 * ONE, -0.5 * ONE, MASK).item() > 1e-4


def test_hybrid_trains_the_variance_without_moving_the_mean():
    process = DiffusionProcess(SCHEDULE, loss="hybrid")
    drawn = process.sample(2 * ONE, torch.tensor([3]), -1 * ONE, ONE)
    prediction, v = (0.4 * ONE).requires_grad_(), (0.1 * ONE).requires_grad_()
    process.eq3_loss(drawn, prediction, v, MASK).backward()
    assert prediction.grad.item() == pytest.approx(2 * (0.4 + 1), rel=1e-6)  # of the squared error alone
    assert v.grad.abs().item() > 1e-3


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_target_belongs_to_the_prediction(prediction):
    """Predicting the target exactly makes the model's mean the posterior's mean, whatever is predicted."""
    process = DiffusionProcess(SCHEDULE, prediction, loss="kl")
    drawn = process.sample(2 * ONE, torch.tensor([2]), -1 * ONE, ONE)
    assert process.eq3_loss(drawn, drawn.target, -1 * ONE, MASK).item() == pytest.approx(0, abs=1e-6)


def test_padding_does_not_count():
    process = DiffusionProcess(SCHEDULE)
    x_0, eps = torch.ones(1, 3, 2), torch.ones(1, 3, 2)
    drawn = process.sample(x_0, torch.tensor([2]), eps, eps)
    prediction = torch.full((1, 3, 2), 0.5)
    mask = torch.tensor([[True, True, False]])
    before = process.eq3_loss(drawn, prediction, prediction, mask)
    prediction[:, 2] = math.nan
    assert process.eq3_loss(drawn, prediction, prediction, mask).item() == before.item()


def test_an_unknown_loss_is_refused():
    with pytest.raises(UsageError, match="must be one of nll, kl, hybrid"):
        DiffusionProcess(SCHEDULE, loss="l1")
