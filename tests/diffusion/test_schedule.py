"""The schedule: Eq. 2's identity, its divergence read literally, and tables by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rohydr_fast.config import PREDICTIONS
from rohydr_fast.diffusion.schedule import Schedule
from rohydr_fast.errors import UsageError
from rohydr_fast.ops.reverse_loop.reference import log_variance, reverse_step


def test_eq2_with_one_gamma_is_ddpm_for_the_right_delta():
    """gamma = alpha_t and delta_t = beta_t sqrt(beta_t / (1 - abar_t)) make the printed form DDPM's mean."""
    schedule = Schedule()
    beta, abar = schedule.betas, schedule.alphas_bar[1:]
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(2, len(beta)))
    gamma, delta = 1 - beta, beta * np.sqrt(beta / (1 - abar))
    printed = (x - delta / np.sqrt(1 - gamma) * eps) / np.sqrt(gamma)
    ddpm = (x - beta / np.sqrt(1 - abar) * eps) / np.sqrt(1 - beta)
    np.testing.assert_allclose(printed, ddpm, rtol=1e-12)


def test_eq2_read_literally_diverges():
    """gamma = abar_t in both places amplifies x by 10^735 over 1000 steps; the right chain by 10^2.2."""
    schedule = Schedule()
    literal = -0.5 * np.log10(schedule.alphas_bar[1:]).sum()
    right = -0.5 * np.log10(1 - schedule.betas).sum()
    assert literal == pytest.approx(735, abs=1)
    assert right == pytest.approx(2.2, abs=0.05)
    x = torch.ones(())
    for abar in schedule.alphas_bar[1:]:
        x = x / abar**0.5
    assert torch.isinf(x)


def test_a_table_of_two_steps_by_hand():
    schedule = Schedule(num_steps=2, beta_start=0.1, beta_end=0.2)
    abar1, abar2 = 0.9, 0.9 * 0.8
    posterior2 = 0.2 * (1 - abar1) / (1 - abar2)
    expected = [
        [1 / 0.9**0.5, -0.1 / (0.1 * 0.9) ** 0.5, np.log(0.1), np.log(posterior2)],  # btilde_1 replaced by btilde_2
        [1 / 0.8**0.5, -0.2 / ((1 - abar2) * 0.8) ** 0.5, np.log(0.2), np.log(posterior2)],
    ]
    table = schedule.table(2)
    assert table.timesteps.tolist() == [1, 2]
    torch.testing.assert_close(table.coefficients, torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=1e-6)
    assert table.coefficients.dtype == torch.float32


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_timesteps_rise_and_end_at_the_noisiest(num_steps, steps):
    schedule = Schedule(num_steps)
    if steps > num_steps:
        with pytest.raises(UsageError, match="steps must be between 1"):
            schedule.timesteps(steps)
        return
    t = schedule.timesteps(steps)
    assert len(t) == steps and t[-1] == num_steps and t[0] >= 1
    assert (np.diff(t) > 0).all()


@settings(deadline=None)
@given(st.sampled_from(PREDICTIONS), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_every_prediction_gives_the_same_mean(prediction, steps, seed):
    """eps, v and x_0 that belong together lead to the same step: only the table differs."""
    schedule = Schedule(200)
    rng = np.random.default_rng(seed)
    i = int(rng.integers(1, steps + 1))
    abar = schedule.alphas_bar[schedule.timesteps(steps)[i - 1]]
    x_0, eps = torch.from_numpy(rng.normal(size=(2, 1, 3, 2)))
    x_t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * eps
    value = {"eps": eps, "v": abar**0.5 * eps - (1 - abar) ** 0.5 * x_0, "x0": x_0}[prediction]
    row = schedule.table(steps, prediction).coefficients[i - 1]
    base = schedule.table(steps, "eps").coefficients[i - 1]
    mean = reverse_step(x_t, value, torch.zeros_like(x_t), row, None)
    torch.testing.assert_close(mean, reverse_step(x_t, eps, torch.zeros_like(x_t), base, None), rtol=1e-4, atol=1e-4)


def test_log_variance_runs_from_posterior_to_beta():
    low, high = torch.tensor(-4.0), torch.tensor(-2.0)
    v = torch.tensor([-1.0, 0.0, 1.0])
    assert log_variance(v, high, low).tolist() == [-4.0, -3.0, -2.0]


@pytest.mark.parametrize("arguments", [dict(num_steps=0), dict(beta_start=0.0), dict(beta_start=0.5, beta_end=0.1)])
def test_an_impossible_schedule_is_refused_with_its_rule(arguments):
    with pytest.raises(UsageError, match="must"):
        Schedule(**arguments)
