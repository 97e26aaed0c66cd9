"""What a gradient of the native core rests on: inputs that stay as they were, enough memory, finite numbers."""

import math
import re

import pytest
import torch
from torch import Tensor

from rohydr_fast.diffusion.sampler import sample
from rohydr_fast.errors import UsageError
from rohydr_fast.ops.reverse_loop import Chain, first_undefined_steps, reverse_loop, reverse_loops
from tests.native_spy import needs_core
from tests.ops.gradient_cases import result
from tests.ops.inputs import CHANNELS, INPUTS, STEPS, TOKENS, WIDTH, loop_arguments, make_chain, make_denoiser, wanting

pytestmark = [needs_core, pytest.mark.usefixtures("one_thread")]


def read_by_the_way_back(chain: Chain) -> dict[str, Tensor]:
    """What must not change between a forward and its backward."""
    block = chain.weights.blocks[1]
    return {
        "weights.in_weight": chain.weights.in_weight,
        "weights.blocks[1].fc2_bias": block.fc2_bias,
        "modulation.blocks": chain.modulation.blocks,
        "modulation.final": chain.modulation.final,
        "cond_kv": chain.cond_kv,
        "position": chain.position,
        "coefficients": chain.coefficients,
        "sample_ids": chain.noise.sample_ids,
        "token_mask": chain.token_mask,
        "key_mask": chain.key_mask,
    }


@pytest.mark.parametrize("name", read_by_the_way_back(make_chain()))
def test_what_changed_in_place_before_the_way_back_is_torchs_error(name):
    chain = make_chain(make_denoiser())
    out = reverse_loops([chain], backend="cpp")[0]
    tensor = read_by_the_way_back(chain)[name]
    with torch.no_grad():
        tensor.copy_(tensor.clone())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("op", ["denoiser_block", "denoiser"])
@pytest.mark.parametrize("name", ["x", "cond_kv", "weights", "token_mask", "key_mask"])
def test_what_changed_in_place_before_the_way_back_of_a_network_is_torchs_error(op, name):
    given = INPUTS[op]()
    leaf = wanting(given, name if name in ("x", "cond_kv", "weights") else "weights")
    out = result(op, given, backend="cpp")
    with torch.no_grad():
        tensor = given[name] if name.endswith("mask") else leaf
        tensor.copy_(tensor.clone())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_step_of_an_optimizer_before_the_way_back_is_torchs_error():
    model = make_denoiser()
    optimizer = torch.optim.Adam(model.parameters())
    first, second = (sample(model, torch.randn(2, 5, WIDTH), steps=2, seed=seed, backend="cpp") for seed in (1, 2))
    first.sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second.sum().backward()


def test_x_k_and_the_result_may_change():
    chain = make_chain()
    x = chain.x.clone().requires_grad_()
    expected = torch.autograd.grad(reverse_loops([chain._replace(x=x)])[0].sum(), x)[0]
    start = x.detach().clone().requires_grad_()
    out = reverse_loops([chain._replace(x=start)])[0]
    out.mul_(1)
    with torch.no_grad():
        start.zero_()
    out.sum().backward()
    assert torch.equal(start.grad, expected)


@pytest.mark.parametrize("grad_steps", [None, 2, 1])
def test_too_little_memory_for_x_t_names_what_it_takes(grad_steps):
    steps = STEPS if grad_steps is None else grad_steps
    chain = make_chain(make_denoiser(), batch=3)._replace(grad_steps=grad_steps)
    needed = 4 * steps * 3 * TOKENS * CHANNELS
    words = f"max_memory must be at least {needed} bytes (1 MiB), those of x_t at every step, got {needed - 1}."
    with pytest.raises(UsageError, match=re.escape(words)):
        reverse_loops([chain], backend="cpp", max_memory=needed - 1)
    args, options = loop_arguments(chain)
    with pytest.raises(UsageError, match=f"at least {needed}"):
        reverse_loop(*args, **options, max_memory=0)
    assert reverse_loop(*args, **options, max_memory=needed).requires_grad
    assert not reverse_loops([chain._replace(grad_steps=0)], max_memory=0)[0].requires_grad
    with torch.no_grad():
        reverse_loops([chain], max_memory=0)


def test_the_memory_of_a_sampler_is_that_of_its_chain():
    needed = 4 * 3 * 2 * 5 * CHANNELS
    with pytest.raises(UsageError, match=rf"at least {needed} bytes \(1 MiB\), those of x_t at every step, got 9\."):
        sample(make_denoiser(), torch.randn(2, 5, WIDTH), steps=3, max_memory=9)


def poisoned(chain: Chain, step: int | None, value: float) -> Chain:
    """A chain whose step `step` gives `value`: that row of the last layer's shift is not a number."""
    if step is None:
        return chain
    final = chain.modulation.final.clone()
    final[step - 1, 0, 0] = value
    return chain._replace(modulation=chain.modulation._replace(final=final))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_the_first_step_that_is_not_finite(backend, value):
    chains = [poisoned(make_chain(), step, value) for step in (None, *range(1, STEPS + 1))]
    assert first_undefined_steps(chains, backend=backend) == [None, *range(1, STEPS + 1)]
    x = chains[0].x.clone()
    x[0, 0, 0] = value
    masked = chains[0].x.clone()
    masked[~chains[0].token_mask] = value
    given = [chains[0]._replace(x=start) for start in (x, masked)]
    # Padded x_K is not looked at, but attention of the reference multiplies what it masks by 0.
    assert first_undefined_steps(given, backend=backend) == [STEPS + 1, None if backend == "cpp" else STEPS]
    assert first_undefined_steps([], backend=backend) == []


def test_what_is_not_finite_on_the_way_back_stays_so():
    """Of the sample where it is; and of the sums over all."""
    for chain, asked in (
        (poisoned(make_chain(make_denoiser()), 2, math.nan), 1.0),
        (make_chain(make_denoiser(), batch=2), math.nan),
    ):
        cond_kv = chain.cond_kv.clone().requires_grad_()
        out = reverse_loops([chain._replace(cond_kv=cond_kv)], backend="cpp")[0]
        out_gradient = torch.ones_like(out)
        out_gradient[0] = asked
        out.backward(out_gradient)
        assert cond_kv.grad[:, :, 0].isnan().any() and chain.weights.in_weight.grad.isnan().all()
    assert cond_kv.grad[:, :, 1].isfinite().all()
