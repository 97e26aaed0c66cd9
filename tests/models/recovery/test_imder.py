"""imder-style: the reverse SDE as a table of the reverse loop."""

import math

import numpy as np
import pytest
import torch

from rohydr_fast.models.recovery.imder import SIGMA, VarianceExploding


@pytest.mark.parametrize("steps", [1, 5, 20, 100])
def test_a_row_is_a_step_of_euler_maruyama(steps):
    process, rng = VarianceExploding(), np.random.default_rng(0)
    table = process.table(steps)
    for i in range(steps, 0, -1):
        t, dt = i / steps, 1 / steps
        std, g = math.sqrt((SIGMA ** (2 * t) - 1) / (2 * math.log(SIGMA))), SIGMA**t
        x, eps, z = rng.normal(size=3)
        expected = x + g**2 * dt * (-eps / std) + g * math.sqrt(dt) * z  # the score is -eps / std
        c_x, c_p, log_variance, same = table.coefficients[i - 1].double().tolist()
        y = x / math.sqrt(1 + std**2)
        after = t - dt
        scale_after = math.sqrt(1 + (SIGMA ** (2 * after) - 1) / (2 * math.log(SIGMA)))
        found = scale_after * (c_x * y + c_p * eps + math.exp(log_variance / 2) * z)
        assert log_variance == same and found == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert int(table.timesteps[i - 1]) == round(1000 * t)


def test_the_exact_score_draws_the_data():
    """For x_0 ~ N(m, s^2) the score is known; many chains must end with that mean and deviation."""
    process, steps, mean, deviation = VarianceExploding(), 200, 0.7, 0.5
    table = process.table(steps).coefficients.double()
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(20_000, generator=generator, dtype=torch.float64)
    for i in range(steps, 0, -1):
        std = float(process.std(np.array(i / steps)))
        scale = math.sqrt(1 + std**2)
        eps = std * (scale * y - mean) / (deviation**2 + std**2)  # -std times the score of N(mean, s^2 + std^2)
        c_x, c_p, log_variance, _ = table[i - 1]
        y = c_x * y + c_p * eps
        if i > 1:
            y = y + torch.exp(log_variance / 2) * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    assert float(y.mean()) == pytest.approx(mean, abs=0.05)
    assert float(y.std()) == pytest.approx(deviation, abs=0.05)
