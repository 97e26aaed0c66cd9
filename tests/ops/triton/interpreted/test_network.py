"""`denoiser` and `reverse_loop` by the Triton kernels in the interpreter."""

import threading

import pytest
import torch

from rohydr_fast import backend as use_backend
from rohydr_fast.diffusion.sampler import sample
from rohydr_fast.ops.denoiser import denoiser
from rohydr_fast.ops.diffusion_loss import diffusion_loss
from rohydr_fast.ops.reverse_loop import first_undefined_steps, graphed, reverse_loop, reverse_loops
from tests.ops.gradient_cases import chain_of, direction, gradients, with_leaves
from tests.ops.inputs import WIDTH, loss_inputs, make_denoiser

from .rule import check, errors, network_problem, numbers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def nothing_recorded():
    graphed._recorded.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", [1, 2], ids=["one step for all", "a step for each sample"])
def test_denoiser_result_and_gradients(seed, dtype):
    check("denoiser", network_problem(seed, dtype), dtype)


def test_a_chain_with_gradients():
    check("reverse_loop", network_problem(1, torch.float32, steps=2, layers=1), torch.float32)


def test_the_gradient_of_the_position_and_of_bfloat16_weights():
    """Which the native core lacks."""
    given, leaves = with_leaves(network_problem(2, torch.float32), torch.float32)
    given["position"] = given["position"].clone().requires_grad_()
    given["weights"] = given["weights"].to(torch.bfloat16)
    wanted = [given["position"], *leaves.values()]
    real = given["token_mask"][..., None]
    found, expected = (
        torch.autograd.grad((torch.cat(denoiser(**given, backend=name), -1) * real).square().sum(), wanted)
        for name in ("triton", "reference")
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_chain_without_gradients_runs_the_recorded_step(dtype):
    given = network_problem(3, dtype, steps=3)
    way = direction("reverse_loop", given).to(dtype)
    exact, own = (
        {"result": numbers("reverse_loop", given, way, kind, backend="reference")["result"]}
        for kind in (torch.float64, dtype)
    )
    found = reverse_loop(**given, backend="triton")
    assert not found[~given["token_mask"]].any() and len(graphed._recorded) == 1
    seen, own = (errors(part, exact)["result"] for part in ({"result": found}, own))
    assert seen <= 2 * own + 4 * torch.finfo(torch.float32).eps, (seen, own)


def test_a_recorded_step_serves_other_numbers_lengths_and_changed_weights(monkeypatch):
    made = []
    monkeypatch.setattr(graphed, "record", lambda step, device: made.append(device) or step)
    first = network_problem(4, torch.float32, steps=2, layers=1, samples=1)
    other = {**network_problem(5, torch.float32, steps=3, layers=1, samples=1), "key_mask": first["key_mask"]}
    for given in (first, other, first):
        found = reverse_loop(**given, backend="triton")
        expected = reverse_loop(**given, backend="reference").masked_fill(~given["token_mask"][..., None], 0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert made == [torch.device("cpu")]
    before = reverse_loop(**first, backend="triton")
    first["weights"].in_weight.mul_(2)
    assert not torch.equal(reverse_loop(**first, backend="triton"), before)
    first["weights"].in_weight.mul_(0.5)
    assert torch.equal(reverse_loop(**first, backend="triton"), before)
    narrow = {**first, "weights": first["weights"].to(torch.bfloat16)}
    widened = {**first, "weights": narrow["weights"].to(torch.float32)}
    assert torch.equal(*(reverse_loop(**given, backend="triton") for given in (narrow, widened)))
    with torch.inference_mode():
        assert torch.equal(reverse_loop(**first, backend="triton"), before)
    assert len(made) == 1


def test_recorded_steps_are_few_and_the_last_used_ones(monkeypatch):
    monkeypatch.setattr(graphed, "KEPT", 2)
    problems = [network_problem(6, torch.float32, steps=1, layers=1, tokens=n) for n in (1, 2, 3)]
    for i in (0, 1, 0, 2):
        reverse_loop(**problems[i], backend="triton")
    assert list(graphed._recorded) == [graphed._key(chain_of(problems[i])) for i in (0, 2)]


def test_calls_from_threads_take_turns():
    problems = [{**network_problem(seed, torch.float32, steps=2, layers=1), "key_mask": None} for seed in (7, 8)]
    expected = [reverse_loop(**given, backend="triton") for given in problems]
    found = [None, None]

    def call(i: int) -> None:
        found[i] = reverse_loop(**problems[i], backend="triton")

    threads = [threading.Thread(target=call, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_recorded_step_and_the_loop_of_operations_agree_and_so_do_chains_together():
    chains = [chain_of(network_problem(9, torch.float32, steps=2, layers=1, tokens=n)) for n in (3, 4)]
    with use_backend("triton"):
        together = reverse_loops(chains)
        states, looped = graphed.trajectory(chains[0])
    assert states.shape == (2, *chains[0].x.shape)
    torch.testing.assert_close(together[0], looped, rtol=1e-5, atol=1e-6)
    assert torch.equal(together[1], reverse_loops([chains[1]], backend="triton")[0])


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # of numpy, when it multiplies infinities
def test_where_a_chain_leaves_the_finite_numbers():
    given = network_problem(10, torch.float32, steps=3, layers=1)
    given["coefficients"] = given["coefficients"].clone()
    given["coefficients"][1, 0] = 3e38
    given["x"] = given["x"] * 10
    assert first_undefined_steps([chain_of(given)], backend="triton") == [2]


def test_only_the_last_steps_have_a_gradient_if_so_asked():
    given = network_problem(11, torch.float32, steps=3, layers=1) | {"grad_steps": 1}
    way = torch.ones_like(given["x"])
    found, expected = (gradients("reverse_loop", given, way, backend=name) for name in ("triton", "reference"))
    assert found["['x']"] is None and expected["['x']"] is None
    of_rows = found["['modulation'].blocks"]
    assert of_rows[0].any() and not of_rows[1:].any()
    real = given["token_mask"][..., None].float()
    expected = gradients("reverse_loop", given, way * real, backend="reference")
    torch.testing.assert_close(of_rows, expected["['modulation'].blocks"], rtol=1e-4, atol=1e-5)


def test_equation_3_and_a_whole_sample_where_the_context_names_triton():
    model = make_denoiser()
    given = loss_inputs(batch=2, tokens=3, keys=2)
    given["weights"] = model.weights()
    padded = {**given, "x_0": given["x_0"].masked_fill(~given["token_mask"][..., None], torch.nan)}
    cond, parameters = torch.randn(2, 2, WIDTH), [model.embed.weight, model.blocks[0].fc1.bias, model.out.weight]
    losses, gradients, samples = [], [], []
    for name in ("triton", "reference"):
        with use_backend(name):
            losses.append(diffusion_loss(**(padded if name == "triton" else given)))  # which does not look there
            gradients.append(torch.autograd.grad(losses[-1], parameters))
            with torch.no_grad():
                samples.append(sample(model, cond, steps=2, seed=3, tokens=3))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(samples[0], samples[1], rtol=1e-4, atol=1e-5)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
