"""Each sampler step by step against diffusers' scheduler, on a network that is a fixed function of x and t."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from rohydr_fast import backend as use_backend
from rohydr_fast.config import SAMPLERS
from rohydr_fast.diffusion.sampler import sample
from rohydr_fast.diffusion.schedule import Schedule
from rohydr_fast.diffusion.solvers import SILENT
from rohydr_fast.errors import UsageError
from rohydr_fast.ops.reverse_loop.reference import log_variance, next_history, reverse_step
from tests.diffusion.test_sampler import BACKENDS, chain_inputs, make_denoiser
from tests.native_spy import needs_core, spy_on_core

STEPS = [1, 2, 3, 4, 5, 8, 10, 20, 50]
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")


def network(x: torch.Tensor, t: int) -> torch.Tensor:
    """Some answer; `t` counts from 1."""
    return torch.tanh(0.7 * x + 0.3 * x.roll(1, -1) + math.sin(0.01 * t)) - 0.2 * x


def our_states(sampler: str, steps: int, prediction: str, x: torch.Tensor, eta: float = 0.0, noise=None):
    """x after every step, as the reference of the loop computes it, with coefficients in float64 where they matter."""
    table = Schedule().table(steps, prediction, sampler, eta)
    history, states = torch.zeros_like(x), []
    for i in range(steps, 0, -1):
        row = table.coefficients[i - 1].double()
        answer = network(x, int(table.timesteps[i - 1]))
        z = None if noise is None or i == 1 else noise[i]
        following = reverse_step(x, answer, torch.zeros_like(x), row, z)
        if len(row) == 8:
            following = following + row[4] * history
            history = next_history(x, answer, history, row)
        x = following
        states.append(x)
    return states


def their_states(scheduler, steps: int, x: torch.Tensor, **options):
    scheduler.set_timesteps(steps)
    states = []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, int(t) + 1), t, x, **options).prev_sample
        states.append(x)
    return states


def start() -> torch.Tensor:
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        # Both hold their tables in float32.
        torch.testing.assert_close(one, other.double(), rtol=2e-4, atol=2e-4 * float(other.abs().max()), msg=f"{step}")


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
class TestAgainstDiffusers:
    def test_ddim(self, steps, prediction):
        if 1000 % steps:
            # Its step after t is t - N // K, which is not the next of its own steps unless K divides N. A table of
            # exactly those steps is that of a shorter schedule with the same abar at them.
            pytest.skip(f"diffusers' DDIM has other steps than its own timesteps where {steps} does not divide 1000")
        scheduler = DDIMScheduler(
            **BETAS, prediction_type=PREDICTIONS[prediction], clip_sample=False, timestep_spacing="trailing",
            set_alpha_to_one=True,
        )  # fmt: skip
        assert_same(our_states("ddim", steps, prediction, start()), their_states(scheduler, steps, start()))

    def test_dpm_solver_plus_plus_2m(self, steps, prediction):
        scheduler = DPMSolverMultistepScheduler(
            **BETAS, prediction_type=PREDICTIONS[prediction], timestep_spacing="trailing", solver_order=2,
            algorithm_type="dpmsolver++", solver_type="midpoint", final_sigmas_type="zero",
        )  # fmt: skip
        assert_same(our_states("dpm++2m", steps, prediction, start()), their_states(scheduler, steps, start()))

    def test_unipc(self, steps, prediction):
        scheduler = UniPCMultistepScheduler(
            **BETAS, prediction_type=PREDICTIONS[prediction], timestep_spacing="trailing", solver_order=1,
            solver_type="bh2", predict_x0=True, final_sigmas_type="zero",
        )  # fmt: skip
        assert_same(our_states("unipc", steps, prediction, start()), their_states(scheduler, steps, start()))


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("steps", [2, 5, 10])
def test_ddim_with_noise(steps, eta):
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
    noise = {i: torch.randn(4, 6, dtype=torch.float64) for i in range(1, steps + 1)}
    ours, x, theirs = our_states("ddim", steps, "eps", start(), eta, noise), start(), []
    scheduler.set_timesteps(steps)
    for i, t in zip(range(steps, 0, -1), scheduler.timesteps, strict=True):
        x = scheduler.step(network(x, int(t) + 1), t, x, eta=eta, variance_noise=noise[i]).prev_sample
        theirs.append(x)
    assert_same(ours, theirs)


def test_ddim_with_all_its_noise_is_eq_2_with_the_smaller_variance():
    eq_2, ddim = (
        Schedule().table(20, "v", sampler, eta).coefficients for sampler, eta in (("ancestral", 0), ("ddim", 1))
    )
    torch.testing.assert_close(ddim[:, :2], eq_2[:, :2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ddim[1:, 2:], eq_2[1:, 3:].expand(-1, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_silent_variance_is_no_noise_whatever_the_network_says_of_sigma(dtype):
    far = 3.0 if dtype == torch.bfloat16 else 1e4
    v = torch.tensor([-far, -1.0, 0.0, 0.5, far], dtype=dtype)
    bound = torch.tensor(SILENT, dtype=dtype)
    assert not torch.exp(0.5 * log_variance(v, bound, bound)).any()


def end_of_chain(schedule: Schedule, sampler: str, steps: int, x: float, mean: float, deviation: float) -> float:
    """x_0 for data N(mean, deviation^2), whose best prediction is known."""
    table = schedule.table(steps, "x0", sampler)
    x = torch.tensor([x], dtype=torch.float64)
    history = torch.zeros_like(x)
    for i in range(steps, 0, -1):
        abar = schedule.alphas_bar[int(table.timesteps[i - 1])]
        gain = math.sqrt(abar) * deviation**2 / (abar * deviation**2 + 1 - abar)
        answer = mean + gain * (x - math.sqrt(abar) * mean)
        row = table.coefficients[i - 1].double()
        following = reverse_step(x, answer, torch.zeros_like(x), row, None)
        if len(row) == 8:
            following, history = following + row[4] * history, next_history(x, answer, history, row)
        x = following
    return float(x)


def test_two_multistep_samplers_come_closer_with_as_many_steps():
    """The flow of the ODE from x_N has an exact solution here: the same quantile of the data."""
    schedule, mean, deviation, x = Schedule(), 0.7, 0.5, 1.3
    abar = schedule.alphas_bar[-1]
    exact = mean + deviation * (x - math.sqrt(abar) * mean) / math.sqrt(abar * deviation**2 + 1 - abar)
    ddim, dpm, unipc = (
        [abs(end_of_chain(schedule, sampler, steps, x, mean, deviation) - exact) for steps in (50, 100, 200)]
        for sampler in ("ddim", "dpm++2m", "unipc")
    )
    assert ddim[2] == pytest.approx(ddim[1] / 2, rel=0.1) and ddim[1] == pytest.approx(ddim[0] / 2, rel=0.1)
    for rival, share in ((dpm, 0.1), (unipc, 0.6)):
        assert all(one < share * other for one, other in zip(rival, ddim, strict=True)), (ddim, rival)
        assert rival[2] < 0.5 * rival[0]  # its steps are paid back more than once


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chain_is_the_loop_written_out(sampler, backend):
    denoiser, (cond, key_mask, token_mask, noise) = make_denoiser(dtype=torch.float64), chain_inputs()
    options = dict(steps=5, sampler=sampler, noise=noise, key_mask=key_mask, token_mask=token_mask)
    with use_backend(backend):
        found = sample(denoiser, cond, **options)
    expected = sample(denoiser, cond, **options, backend="reference")
    torch.testing.assert_close(found[token_mask], expected[token_mask], rtol=1e-9, atol=1e-9)


@needs_core
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gradients_through_every_sampler_are_the_references(sampler):
    denoiser, (cond, key_mask, token_mask, noise) = make_denoiser(dtype=torch.float64), chain_inputs()
    found = []
    for name in ("cpp", "reference"):
        given = cond.clone().requires_grad_()
        denoiser.zero_grad()
        masks = dict(key_mask=key_mask, token_mask=token_mask)
        x_0 = sample(denoiser, given, steps=4, sampler=sampler, noise=noise, backend=name, **masks)
        x_0[token_mask].square().sum().backward()
        found.append([given.grad, *[p.grad for p in denoiser.parameters()]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@needs_core
@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m", "unipc"])
def test_a_sampler_is_one_native_call_and_compiles_without_a_break(sampler, monkeypatch):
    denoiser, (cond, _, _, _) = make_denoiser(), chain_inputs(torch.float32)
    calls = spy_on_core(monkeypatch)
    with torch.no_grad():
        found = sample(denoiser, cond, steps=4, sampler=sampler, backend="cpp")
        assert [call.op for call in calls] == ["reverse_loop"]
        compiled = torch.compile(lambda c: sample(denoiser, c, steps=4, sampler=sampler, backend="cpp"), fullgraph=True)
        torch.testing.assert_close(compiled(cond), found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "sampler: must be one of ancestral, ddim"),
        ({"sampler": "ddim", "eta": 1.5}, "eta: must be between 0"),
        ({"sampler": "ddim", "eta": math.nan}, "eta: must be between 0"),
        ({"sampler": "unipc", "eta": 0.5}, "eta: belongs to the sampler ddim"),
        ({"sampler": "dpm++2m", "steps": 1001}, "steps must be between 1 and the 1000"),
        ({"sampler": "unipc", "steps": 0}, "steps must be between 1 and the 1000"),
    ],
)
def test_what_cannot_be_is_a_sentence(options, message):
    denoiser, (cond, *_) = make_denoiser(), chain_inputs(torch.float32)
    with pytest.raises(UsageError, match=message):
        sample(denoiser, cond, **options)
