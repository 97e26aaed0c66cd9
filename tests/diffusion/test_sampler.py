"""The chain of Eq. 2: against diffusers' DDPM, against a naive loop, and its invariances."""

import pytest
import torch

from rohydr_fast import backend as use_backend
from rohydr_fast.diffusion.sampler import SampleRequest, sample, sample_many
from rohydr_fast.diffusion.schedule import Schedule
from rohydr_fast.errors import UsageError
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.ops import philox
from rohydr_fast.ops.reverse_loop import NoiseKey
from rohydr_fast.ops.reverse_loop.reference import reverse_step, step_noise
from tests.native_spy import needs_core, spy_on_core

BACKENDS = ["reference", pytest.param("cpp", marks=needs_core)]


def make_denoiser(seed: int = 0, dtype=torch.float32) -> Denoiser:
    """A denoiser whose gates are open, as after training."""
    torch.manual_seed(seed)
    denoiser = Denoiser(channels=6, width=16, num_blocks=2, num_heads=4)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return denoiser.to(dtype)


def naive_chain(denoiser, cond, noise, key_mask, token_mask, steps, grad_steps=None):
    """A loop as one would first write it: everything recomputed at every step, DDPM's formulas spelled out."""
    schedule = Schedule()
    abar = torch.from_numpy(schedule.alphas_bar)
    t = schedule.timesteps(steps)
    x = step_noise(cond.new_empty(len(cond), token_mask.shape[1], 6), noise, step=0, stream=philox.Stream.START)
    for i in range(steps, 0, -1):
        if grad_steps is not None and i == grad_steps:
            x = x.detach()
        now, before = abar[t[i - 1]], abar[t[i - 2]] if i > 1 else torch.tensor(1.0, dtype=torch.float64)
        alpha, beta = now / before, 1 - now / before
        eps, v = denoiser(x, torch.full((len(cond),), int(t[i - 1])), cond, token_mask, key_mask)
        x_next = ((x - beta / (1 - now).sqrt() * eps) / alpha.sqrt()).to(x.dtype)
        if i > 1:
            posterior = beta * (1 - before) / (1 - now)
            u = (v + 1) / 2
            log_var = u * beta.log() + (1 - u) * posterior.log()
            x_next = x_next + (0.5 * log_var).exp().to(x.dtype) * step_noise(
                x, noise, step=i, stream=philox.Stream.STEP
            )
        x = x_next
    return x


def chain_inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    cond = torch.randn(3, 7, 16, generator=generator, dtype=torch.float64).to(dtype)
    key_mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [False] * 4 + [True] * 3])
    token_mask = torch.tensor([[True] * 5, [True] * 5, [True] * 3 + [False] * 2])
    return cond, key_mask, token_mask, NoiseKey(11, torch.tensor([4, 5, 6]), 2)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("grad_steps", [None, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_chain_and_its_gradient_equal_a_naive_loop(backend, steps, grad_steps):
    cond, key_mask, token_mask, noise = chain_inputs()
    gradients = []
    for chain in ("sample", "naive"):
        denoiser = make_denoiser(dtype=torch.float64)
        condition = cond.clone().requires_grad_()
        if chain == "sample":
            x = sample(denoiser, condition, key_mask=key_mask, token_mask=token_mask, steps=steps, noise=noise,
                       grad_steps=grad_steps, backend=backend)  # fmt: skip
        else:
            with use_backend("reference"):
                x = naive_chain(denoiser, condition, noise, key_mask, token_mask, steps, grad_steps)
        real = x[token_mask]
        (real * torch.linspace(-1, 1, real.numel(), dtype=real.dtype).view_as(real)).sum().backward()
        gradients.append([real.detach(), condition.grad] + [p.grad for p in denoiser.parameters()])
    for ours, naive in zip(*gradients, strict=True):
        scale = naive.abs().max().clamp(min=1e-30)
        assert ((ours - naive).abs().max() / scale).item() < 1e-6  # the tables are float32


def test_no_gradient_when_none_is_asked_for():
    cond, key_mask, token_mask, noise = chain_inputs(torch.float32)
    x = sample(make_denoiser(), cond.requires_grad_(), key_mask=key_mask, token_mask=token_mask, steps=3, noise=noise,
               grad_steps=0)  # fmt: skip
    assert not x.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_sigma_parameter_gets_a_gradient_through_the_chain(backend):
    cond, key_mask, token_mask, noise = chain_inputs(torch.float32)
    denoiser = make_denoiser()
    x = sample(denoiser, cond, key_mask=key_mask, token_mask=token_mask, steps=4, noise=noise, backend=backend)
    x[token_mask].pow(2).sum().backward()
    sigma_rows = denoiser.out.weight.grad[denoiser.channels :], denoiser.out.bias.grad[denoiser.channels :]
    assert all((rows != 0).all() for rows in sigma_rows)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 10, 20, 50])
@pytest.mark.parametrize(("tables", "tolerance"), [("float64", 1e-6), ("float32", 1e-5)])
def test_each_step_equals_diffusers_ddpm_with_learned_range(steps, tables, tolerance):
    """The same network outputs and the same noise through DDPMScheduler and through our table.

    The scheduler multiplies its alphas in float32, which alone costs it 2e-6; with its table in float64 we agree
    to float32 rounding.
    """
    from diffusers import DDPMScheduler

    oracle = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False,
        variance_type="learned_range", timestep_spacing="trailing",
    )  # fmt: skip
    if tables == "float64":
        oracle.alphas_cumprod = torch.from_numpy(Schedule().alphas_bar[1:])
        oracle.one = torch.tensor(1.0, dtype=torch.float64)
    oracle.set_timesteps(steps)
    table = Schedule().table(steps)
    assert [int(t) + 1 for t in oracle.timesteps] == table.timesteps.tolist()[::-1]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 6, generator=generator)
    for i, t in zip(range(steps, 0, -1), oracle.timesteps, strict=True):
        output = torch.randn(2, 8, 6, generator=generator)  # (B, 2C, T): eps, then v
        if i == 1:  # z_1 = 0 in Eq. 2; diffusers adds noise unless v puts the variance at its lower end, 1e-20
            output[:, 4:] = -1
        step_seed = torch.Generator().manual_seed(i)
        theirs = oracle.step(output, t, x, generator=step_seed).prev_sample
        z = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(i)) if i > 1 else None
        eps, v = output.chunk(2, 1)
        ours = reverse_step(x, eps, v, table.coefficients[i - 1], z)
        assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < tolerance
        x = theirs


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_does_not_depend_on_its_batch_or_on_padding(backend):
    cond, key_mask, token_mask, noise = chain_inputs()
    denoiser = make_denoiser(dtype=torch.float64).requires_grad_(False)
    with use_backend(backend):
        whole = sample(denoiser, cond, key_mask=key_mask, token_mask=token_mask, steps=5, noise=noise)
        alone = sample(
            denoiser, cond[2:, 4:], token_mask=token_mask[2:, :3], steps=5, noise=NoiseKey(11, noise.sample_ids[2:], 2)
        )
    torch.testing.assert_close(alone[0], whole[2, :3], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(backend):
    cond, denoiser = torch.zeros(2, 3, 16), make_denoiser().requires_grad_(False)
    first = sample(denoiser, cond, steps=4, seed=5, backend=backend)
    assert torch.equal(first, sample(denoiser, cond, steps=4, seed=5, backend=backend))
    assert not torch.equal(first, sample(denoiser, cond, steps=4, seed=6, backend=backend))
    assert not torch.equal(first[0], first[1])


@needs_core
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_native_chain_is_that_of_the_reference(dtype, bound, prediction, monkeypatch):
    calls = spy_on_core(monkeypatch)
    cond, key_mask, token_mask, noise = chain_inputs(dtype)
    denoiser = make_denoiser(dtype=dtype).requires_grad_(False)
    options = dict(key_mask=key_mask, token_mask=token_mask, steps=7, prediction=prediction, noise=noise)
    found = sample(denoiser, cond, **options, backend="cpp")
    assert len(calls) == 1
    expected = sample(denoiser, cond, **options, backend="reference")
    assert len(calls) == 1
    difference = (found - expected)[token_mask].abs().max() / expected[token_mask].abs().max()
    assert difference <= bound and not found[~token_mask].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_requests_are_one_call_with_the_numbers_of_each_alone(backend, monkeypatch):
    cond, key_mask, token_mask, noise = chain_inputs(torch.float32)
    first, second = (make_denoiser(seed).requires_grad_(False) for seed in (0, 1))
    requests = [
        SampleRequest(first, cond, key_mask=key_mask, token_mask=token_mask, steps=5, noise=noise),
        SampleRequest(second, cond[:1], tokens=9, steps=3, seed=4, prediction="v", schedule=Schedule(500)),
    ]
    calls = spy_on_core(monkeypatch) if backend == "cpp" else None
    together = sample_many(requests, backend=backend)
    assert calls is None or [call.chains for call in calls] == [2]
    for request, found in zip(requests, together, strict=True):
        alone = sample(**request._asdict(), backend=backend)
        assert torch.equal(alone, found)
    assert sample_many([]) == []


def test_a_request_without_gradient_beside_one_with():
    cond, key_mask, token_mask, noise = chain_inputs(torch.float32)
    request = SampleRequest(make_denoiser(), cond, token_mask=token_mask, steps=3, noise=noise)
    without, full = sample_many([request._replace(grad_steps=0), request])
    assert not without.requires_grad and full.requires_grad and torch.equal(without, full)


def test_negative_grad_steps_are_refused():
    with pytest.raises(UsageError, match="grad_steps must be 0 or more, got -1. Use None for all steps"):
        sample(make_denoiser(), torch.zeros(1, 3, 16), steps=2, grad_steps=-1)


def test_more_steps_than_the_schedule_has_are_refused():
    with pytest.raises(UsageError, match="steps must be between 1 and the 1000"):
        sample(make_denoiser(), torch.zeros(1, 3, 16), steps=1001)


def test_an_empty_key_set_is_refused():
    with pytest.raises(UsageError, match="at least one key"):
        sample(make_denoiser(), torch.zeros(1, 0, 16), steps=2, tokens=3)
