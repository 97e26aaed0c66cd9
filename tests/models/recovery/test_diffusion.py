"""rohydr's own recovery: a mean of draws is the mean of the draws, and an anchor without residual is a regression."""

import pytest
import torch

from rohydr_fast.errors import UsageError
from rohydr_fast.models.recovery import DiffusionRecovery, make_recovery
from rohydr_fast.ops.philox import derive_seed
from tests.models.recovery.learning import build, clips, supervise
from tests.small_model import open_up, small_config


@torch.no_grad()
def recover(recovery: DiffusionRecovery, seed: int) -> torch.Tensor:
    return supervise(recovery, clips(small_config()), seed=seed).recovered["v"].generated.x


def test_a_mean_of_draws_is_the_mean_of_single_draws():
    one, mean = build("rohydr"), build("rohydr", draws=3)
    open_up(one)
    open_up(mean)
    drawn = [recover(one, seed) for seed in (5, derive_seed(5, 1), derive_seed(5, 2))]
    assert not torch.allclose(drawn[0], drawn[1])
    torch.testing.assert_close(recover(mean, 5), torch.stack(drawn).mean(0), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_mean_is_the_mean_of_gradients():
    def gradient(draws: int, seed: int) -> torch.Tensor:
        recovery = build("rohydr", draws=draws)
        open_up(recovery)
        supervise(recovery, clips(small_config()), seed=seed).recovered["v"].generated.x.pow(2).sum().sqrt().backward()
        return recovery.hddm["v"].denoiser.out.bias.grad

    def of_mean(seeds: tuple[int, ...]) -> torch.Tensor:
        recovery = build("rohydr")
        open_up(recovery)
        drawn = [supervise(recovery, clips(small_config()), seed=s).recovered["v"].generated.x for s in seeds]
        torch.stack(drawn).mean(0).pow(2).sum().sqrt().backward()
        return recovery.hddm["v"].denoiser.out.bias.grad

    expected = of_mean((5, derive_seed(5, 1), derive_seed(5, 2)))
    assert expected.any() and not torch.allclose(gradient(1, 5), expected)
    torch.testing.assert_close(gradient(3, 5), expected, rtol=1e-3, atol=1e-5)


def test_an_anchor_without_a_residual_is_the_regression():
    anchored, regression = build("rohydr", anchor="regress"), build("regress")
    open_up(anchored)
    shared = {name: p for name, p in anchored.state_dict().items() if not name.startswith("hddm")}
    regression.load_state_dict(shared)
    hddm = anchored.hddm["v"]
    hddm.norm.std.zero_()  # what is drawn counts for nothing
    torch.testing.assert_close(recover(anchored, 0), recover(regression, 0))
    hddm.norm.std.fill_(1.0)
    assert not torch.allclose(recover(anchored, 0), recover(regression, 0))


def test_the_residual_learns_from_what_the_anchor_leaves_and_does_not_move_it():
    recovery = build("rohydr", anchor="regress")
    open_up(recovery)
    given = supervise(recovery, clips(small_config()))
    recovery.loss(given)
    (target,) = given.targets()
    anchor = recovery.regressor["v"](target.truth.lengths, target.condition.encoded)
    left = (recovery.norm["v"](target.truth.x) - anchor)[target.truth.mask()]
    torch.testing.assert_close(recovery.hddm["v"].norm.std, left.std(0))
    bias = recovery.regressor["v"].denoiser.out.bias
    (gradient,) = torch.autograd.grad(recovery.loss(given), bias)
    error = (anchor - recovery.norm["v"](target.truth.x)).pow(2)[target.truth.mask()].mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(error, bias)[0])


@pytest.mark.parametrize("changes", [{"draws": 2}, {"anchor": "regress"}])
def test_they_belong_to_diffusion(changes):
    for other in ({"method": "mean"}, {"without": ("hddm",)}):
        with pytest.raises(UsageError, match="belongs to --method rohydr"):
            small_config(**changes, **other)
    assert isinstance(make_recovery(small_config(**changes)), DiffusionRecovery)


def test_impossible_choices_are_refused():
    with pytest.raises(UsageError, match="--draws: must be 1 or more, got 0"):
        small_config(draws=0)
    with pytest.raises(UsageError, match="--anchor: must be one of none, regress"):
        small_config(anchor="magic")
