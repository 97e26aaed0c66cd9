"""`torch.compile(fullgraph=True)` of every public operation: no graph break, no recompilation, any batch size."""

import pytest
import torch

from rohydr_fast import backend as use_backend
from rohydr_fast.diffusion.sampler import SampleRequest, sample, sample_many
from rohydr_fast.errors import BackendUnavailable, UsageError
from rohydr_fast.ops import philox
from rohydr_fast.ops.cross_attention import cross_attention
from rohydr_fast.ops.denoiser_block import denoiser_block
from rohydr_fast.ops.reverse_loop import reverse_loop, reverse_loops
from tests.native_spy import needs_core, spy_on_core
from tests.ops.inputs import WIDTH, attention_inputs, block_inputs, loop_arguments, make_chain, make_denoiser

pytestmark = pytest.mark.usefixtures("one_thread")

BACKENDS = ["reference", pytest.param("cpp", marks=needs_core)]

# Sizes of three calls that equal neither each other nor a size of the network: equal ones would share a symbol.
CALLS = [dict(batch=b, tokens=t, keys=s) for b, t, s in ((7, 11, 13), (8, 10, 14), (5, 17, 12))]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, **options):
    """Without code generation, which is inductor's matter, unless `backend` says so."""
    return torch.compile(function, fullgraph=True, **{"backend": "aot_eager", **options})


def no_recompilation():
    return torch._dynamo.config.patch(error_on_recompile=True)


def attention_call(name, **sizes):
    given = attention_inputs(**sizes)
    return lambda q, k, v, mask: cross_attention(q, k, v, num_heads=4, key_mask=mask, backend=name), (
        given["q"], given["k"], given["v"], given["key_mask"],
    )  # fmt: skip


def block_call(name, **sizes):
    given = block_inputs(**sizes)
    weights = given.pop("weights")
    given.pop("num_heads")
    return lambda x, rows, kv, token_mask, key_mask: denoiser_block(
        x, rows, kv, weights, num_heads=4, token_mask=token_mask, key_mask=key_mask, backend=name
    ), tuple(given.values())


def loop_call(name, **sizes):
    chain = make_chain(steps=2, **sizes)

    def call(x, position, kv, ids, token_mask, key_mask):
        given = chain._replace(
            x=x, position=position, cond_kv=kv, noise=chain.noise._replace(sample_ids=ids), token_mask=token_mask,
            key_mask=key_mask,
        )  # fmt: skip
        args, options = loop_arguments(given)
        return reverse_loop(*args, **options, backend=name)

    return call, (chain.x, chain.position, chain.cond_kv, chain.noise.sample_ids, chain.token_mask, chain.key_mask)


def loops_call(name, **sizes):
    chain = make_chain(steps=2, **sizes)

    def call(x, position, kv, ids, token_mask):
        first = chain._replace(
            x=x, position=position, cond_kv=kv, noise=chain.noise._replace(sample_ids=ids), token_mask=token_mask,
            key_mask=None,
        )  # fmt: skip
        second = first._replace(token_mask=None, noise=chain.noise._replace(sample_ids=ids, seed=1, modality=0))
        return torch.cat(reverse_loops([first, second], backend=name))

    return call, (chain.x, chain.position, chain.cond_kv, chain.noise.sample_ids, chain.token_mask)


def sample_call(name, steps=2, **sizes):
    denoiser = make_denoiser().requires_grad_(False)
    cond = torch.randn(sizes.get("batch", 3), sizes.get("keys", 5), WIDTH)
    return lambda cond, seed: sample(denoiser, cond, steps=steps, seed=seed, backend=name), (cond, 5)


def sample_many_call(name, **sizes):
    denoiser = make_denoiser().requires_grad_(False)
    cond = torch.randn(sizes.get("batch", 3), sizes.get("keys", 5), WIDTH)

    def call(cond):
        requests = [SampleRequest(denoiser, cond, steps=2, seed=1), SampleRequest(denoiser, cond, steps=1, tokens=4)]
        return torch.cat(sample_many(requests, backend=name), 1)

    return call, (cond,)


CASES = {
    "cross_attention": attention_call,
    "denoiser_block": block_call,
    "reverse_loop": loop_call,
    "reverse_loops": loops_call,
    "sample": sample_call,
    "sample_many": sample_many_call,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_no_graph_break_the_same_numbers_and_one_compilation(case, backend):
    function, args = CASES[case](backend)
    run = compiled(function)
    expected = function(*args)
    torch.testing.assert_close(run(*args), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    with no_recompilation():
        again = run(*args)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


DYNAMIC = [(case, "cpp") for case in CASES] + [(case, "reference") for case in ("denoiser_block", "sample")]


@pytest.mark.parametrize(
    ("case", "backend"),
    [pytest.param(*pair, marks=needs_core if pair[1] == "cpp" else [], id="-".join(pair)) for pair in DYNAMIC],
)
def test_any_batch_and_length_with_one_compilation(case, backend):
    function, args = CASES[case](backend, **CALLS[0])
    run = compiled(function, dynamic=True)
    run(*args)
    for sizes in CALLS[1:]:
        args = CASES[case](backend, **sizes)[1]
        expected = function(*args)
        with no_recompilation():
            found = run(*args)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@needs_core
@pytest.mark.parametrize("case", ["reverse_loop", "sample"])
def test_with_inductor(case, monkeypatch):
    calls = spy_on_core(monkeypatch)
    function, args = CASES[case](None)
    found, expected = compiled(function, backend="inductor")(*args), function(*args)
    # Inductor's own sines and matrix products differ in the last bits, and a chain of an untrained network grows.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert [call.op for call in calls] == ["reverse_loop", "reverse_loop"]


@needs_core
def test_a_size_of_the_call_that_equals_the_number_of_steps_is_not_taken_for_it():
    """K = 3 and S = 3 at the first call: a graph that ties them together fails at the second, or worse does not."""
    function, _ = sample_call("cpp", steps=3)
    run = compiled(function, dynamic=True)
    for keys in (3, 4, 6):
        cond = torch.randn(7, keys, WIDTH)
        expected = function(cond, 1)
        torch.testing.assert_close(run(cond, 1), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@needs_core
def test_a_new_seed_is_a_new_number_and_soon_no_recompilation():
    function, (cond, _) = sample_call("cpp")
    run = compiled(function)
    seeds = [0, 1, 12, 2**63 - 1, 2**63, 2**64 - 1]
    for seed in seeds:
        expected = function(cond, seed)
        torch.testing.assert_close(run(cond, seed), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    with no_recompilation():
        run(cond, 77)


@needs_core
def test_steps_prediction_and_backend_may_be_arguments_of_the_compiled_function():
    denoiser, cond = make_denoiser().requires_grad_(False), torch.randn(7, 5, WIDTH)

    def call(cond, steps, prediction, backend):
        return sample(denoiser, cond, steps=steps, prediction=prediction, backend=backend)

    run = compiled(call)
    for args in ((2, "eps", None), (3, "v", "cpp"), (4, "v", "cpp"), (1, "x0", "reference")):
        expected = call(cond, *args)
        torch.testing.assert_close(run(cond, *args), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_the_registered_noise_is_traced_with_the_same_bits():
    ids = torch.arange(4)

    def draw(ids):
        return philox.normal(2**64 - 1, ids, modality=1, step=2, stream=philox.Stream.STEP, count=9)

    assert torch.equal(compiled(draw)(ids), draw(ids))
    with use_backend("reference"):
        assert torch.equal(compiled(lambda ids: draw(ids) * 1)(ids), draw(ids))


def test_a_gradient_goes_through_a_compiled_chain_as_through_the_plain_one():
    """A chain of whose gradient nothing is wanted beside one that has it."""
    gradients = []
    for wrap in (compiled, lambda function: function):
        denoiser = make_denoiser()
        cond = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()

        def loss(cond, denoiser=denoiser):
            without = sample(denoiser, cond, steps=2, seed=4, grad_steps=0)
            return (sample(denoiser, cond, steps=2, seed=3) - without).square().sum() + denoiser.embed.bias.sum()

        wrap(loss)(cond).backward()
        gradients.append([cond.grad, *(p.grad for p in denoiser.parameters())])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_a_refusal_while_tracing_is_the_same_sentence():
    function, args = attention_call("triton")
    with pytest.raises(Exception, match="cross_attention: backend must be usable, got 'triton'"):
        compiled(function)(*args)
    torch._dynamo.reset()
    with pytest.raises(BackendUnavailable, match="got 'triton'"):  # without fullgraph: from the plain call
        torch.compile(function, backend="aot_eager")(*args)
    torch._dynamo.reset()
    with pytest.raises(UsageError, match="k must have shape"):
        torch.compile(attention_call(None)[0], backend="aot_eager")(args[0], args[1][:, :, :8], *args[2:])


@needs_core
def test_a_graph_cannot_see_values_so_the_core_names_a_coefficient_that_is_not_finite():
    chain = make_chain()
    coefficients = chain.coefficients.clone()

    def call(coefficients):
        return reverse_loops([chain._replace(coefficients=coefficients)])[0]

    run = compiled(call)
    run(coefficients)
    coefficients[1, 2] = torch.nan
    with pytest.raises(ValueError, match="coefficients must be finite, got nan in row 1"):
        run(coefficients)
    with pytest.raises(UsageError, match="coefficients must be finite"):
        call(coefficients)
