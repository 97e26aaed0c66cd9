"""Gradients of the native core among the features of torch: what works, and what is refused by name."""

import re

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from rohydr_fast.diffusion.sampler import sample
from rohydr_fast.errors import BackendUnavailable
from tests.native_spy import needs_core, spy_on_core
from tests.ops.gradient_cases import FUNCTIONS, result
from tests.ops.inputs import INPUTS, WIDTH, make_denoiser, wanting
from tests.ops.operations import DIFFERENTIABLE

pytestmark = [needs_core, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def calls(monkeypatch):
    return spy_on_core(monkeypatch)


def refused(op: str, words: str):
    return pytest.raises(BackendUnavailable, match=f"^{op}: .*{re.escape(words)}.*[.]$")


@pytest.mark.parametrize("name", ["x", "cond_kv", "weights"])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_one_call_and_one_for_the_gradient(op, name, calls):
    given = INPUTS[op]()
    leaf = wanting(given, name)
    result(op, given).square().sum().backward()
    assert leaf.grad.isfinite().all() and leaf.grad.any()
    assert [c.op for c in calls] == [op, f"{op}_backward"]


@pytest.mark.parametrize("masked", [True, False], ids=["masks", "no-masks"])
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_opcheck_with_gradients(op, masked):
    operation, args = DIFFERENTIABLE[op](masked=masked)
    constant = {id(tensor) for tensor in _constant(op, args)}
    args = torch.utils._pytree.tree_map_only(
        Tensor, lambda x: x.requires_grad_() if x.is_floating_point() and id(x) not in constant else x, args
    )
    assert set(torch.library.opcheck(operation, args).values()) == {"SUCCESS"}


def _constant(op: str, args: tuple) -> list[Tensor]:
    """The position and the coefficients."""
    if op == "reverse_loops_with_states":
        return args[1] + args[5]
    return [] if op == "denoiser_block" else [args[1]]


@pytest.mark.parametrize("op", ["denoiser", "reverse_loops_with_states"])
def test_a_direct_call_that_asks_for_a_gradient_that_nobody_computes_is_refused(op):
    operation, args = DIFFERENTIABLE[op]()
    for tensor in _constant(op, args):
        tensor.requires_grad_()
        with refused(f"torch.ops.rohydr_fast.{op}", "must not require a gradient, got one that does"):
            operation(*args)
        tensor.requires_grad_(False)


class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh_compiler(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize(
        ("op", "compiler"), [*[(op, "aot_eager") for op in FUNCTIONS], ("reverse_loop", "inductor")]
    )
    def test_forward_and_backward_without_graph_break(self, op, compiler, calls):
        given, found = INPUTS[op](), []
        leaves = [wanting(given, name) for name in ("x", "cond_kv", "weights")]

        def function(x, cond_kv):
            return result(op, {**given, "x": x, "cond_kv": cond_kv}).square().sum()

        for wrap in (torch.compile(fullgraph=True, backend=compiler), lambda function: function):
            found.append(torch.autograd.grad(wrap(function)(*leaves[:2]), leaves))
        assert [c.op for c in calls] == [op, f"{op}_backward"] * 2
        for compiled, plain in zip(*found, strict=True):
            torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))

    def test_training_a_compiled_sampler_is_training_the_plain_one(self):
        losses = []
        for wrap in (torch.compile(fullgraph=True, backend="aot_eager"), lambda function: function):
            model = make_denoiser()
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            cond = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
            draw = wrap(lambda cond, model=model: sample(model, cond, steps=3, seed=4, grad_steps=2).square().mean())
            for _ in range(3):
                optimizer.zero_grad()
                loss = draw(cond)
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        assert losses[:3] == pytest.approx(losses[3:], rel=1e-4) and losses[2] != losses[0]


def test_functional_call_has_the_gradients_of_the_module(calls):
    model, cond = make_denoiser(), torch.randn(2, 5, WIDTH)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    class Sampler(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.denoiser = model

        def forward(self, cond):
            return sample(self.denoiser, cond, steps=3, seed=1).square().sum()

    sampler = Sampler()
    sampler(cond).backward()
    named = {f"denoiser.{name}": p for name, p in parameters.items()}
    torch.func.functional_call(sampler, named, cond).backward()
    assert [c.op for c in calls] == ["reverse_loop", "reverse_loop_backward"] * 2
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, parameters[name].grad), name


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_autocast_changes_no_bit(op, backend):
    found = []
    for enabled in (True, False):
        torch.manual_seed(0)
        given = INPUTS[op]()
        leaves = [wanting(given, name) for name in ("x", "cond_kv", "weights")]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = result(op, given, backend=backend)
        assert out.dtype == torch.float32
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_autocast_changes_no_bit_of_a_sampler():
    model, cond, found = make_denoiser(), torch.randn(2, 5, WIDTH), []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = sample(model, cond, steps=3, seed=1)
        assert out.dtype == torch.float32
        found.append([out, *torch.autograd.grad(out.mean(), list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("op", FUNCTIONS)
def test_bfloat16_weights_with_a_gradient_take_the_reference(op, calls):
    given = INPUTS[op]()
    given["weights"] = given["weights"].to(torch.bfloat16)
    weight = wanting(given, "weights")
    result(op, given).sum().backward()
    assert weight.grad.dtype == torch.bfloat16 and weight.grad.any() and calls == []
    with refused(op, "the native core has no gradient with respect to bfloat16 weights; the reference has"):
        result(op, given, backend="cpp")
    given["weights"] = given["weights"].to(torch.bfloat16)._replace(**{given["weights"]._fields[0]: weight.detach()})
    x = wanting(given, "x")
    result(op, given, backend="cpp").sum().backward()  # bfloat16 weights that rest
    assert x.grad.any() and len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", FUNCTIONS)
def test_half_precision_takes_the_reference(op, dtype, calls):
    given = INPUTS[op](dtype=dtype)
    x = wanting(given, "x")
    result(op, given).sum().backward()
    assert x.grad.dtype == dtype and calls == []
    name = str(dtype).removeprefix("torch.")
    with refused(op, f"the native core computes float32 and float64, and these are {name}"):
        result(op, given, backend="cpp")


@pytest.mark.parametrize(
    ("op", "name"), [("denoiser", "position"), ("reverse_loop", "position"), ("reverse_loop", "coefficients")]
)
def test_a_table_that_wants_a_gradient_takes_the_reference(op, name, calls):
    given = INPUTS[op]()
    table = wanting(given, name)
    result(op, given).sum().backward()
    assert table.grad.any() and calls == []
    with refused(op, f"the native core has no gradient with respect to {name}; the reference has"):
        result(op, given, backend="cpp")


@pytest.mark.parametrize("op", FUNCTIONS)
def test_a_gradient_of_a_gradient_is_refused_with_an_advice_that_works(op):
    def gradient(backend):
        (found,) = torch.autograd.grad(result(op, given, backend=backend).square().sum(), x, create_graph=True)
        return found.square().sum()

    given = INPUTS[op]()
    x = wanting(given, "x")
    advice = "Use backend='reference' inside of torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)."
    with pytest.raises(BackendUnavailable, match=f"^{op}s?: its gradient .* once differentiable. {re.escape(advice)}$"):
        gradient("cpp").backward()
    with sdpa_kernel(SDPBackend.MATH):
        gradient("reference").backward()
    assert x.grad.any()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("op", FUNCTIONS)
def test_transforms_of_torch_func_take_the_reference(op, calls):
    given = INPUTS[op](masked=False)
    x = wanting(dict(given), "x")

    def loss(x):
        return result(op, {**given, "x": x}).square().sum()

    expected = torch.autograd.grad(result(op, {**given, "x": x}, backend="reference").square().sum(), x)[0]
    assert calls == []
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), expected)
    with torch.no_grad():
        pair = torch.stack([x, 2 * x])
        found = torch.func.vmap(loss)(pair)
        assert calls == []
        torch.testing.assert_close(found, torch.stack([loss(one) for one in pair]), rtol=1e-4, atol=1e-4)
    for transform, argument in ((torch.func.grad, x.detach()), (torch.func.vmap, pair)):
        with refused(op, "the native core does not run inside torch.func transforms or forward-mode differentiation"):
            transform(lambda x: result(op, {**given, "x": x}, backend="cpp").sum())(argument)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_forward_mode_never_loses_a_tangent(op, calls):
    """torch has no forward mode for attention on a CPU unless told to take it apart: that error, not no tangent."""
    given = INPUTS[op]()
    with torch.no_grad(), forward_ad.dual_level():
        given["x"] = forward_ad.make_dual(given["x"], torch.ones_like(given["x"]))
        with pytest.raises(NotImplementedError, match="forward AD"):
            result(op, given)
        with sdpa_kernel(SDPBackend.MATH):
            assert forward_ad.unpack_dual(result(op, given)).tangent.any()
        with refused(op, "forward-mode"):
            result(op, given, backend="cpp")
    assert calls == []
