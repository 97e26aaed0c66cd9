"""Which backend a call takes: what its tensors ask for, seen from outside."""

import pytest
import torch
from torch.autograd import forward_ad

from rohydr_fast import backend as use_backend
from rohydr_fast.errors import BackendUnavailable
from rohydr_fast.ops.cross_attention import cross_attention
from rohydr_fast.ops.denoiser_block import denoiser_block
from rohydr_fast.ops.reverse_loop import reverse_loops
from tests.native_spy import needs_core, spy_on_core
from tests.ops.inputs import attention_inputs, block_inputs, make_chain, make_denoiser

pytestmark = [needs_core, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def calls(monkeypatch):
    return spy_on_core(monkeypatch)


def attend(**changes):
    return cross_attention(**{**attention_inputs(masked=False), **changes})


def test_without_a_gradient_each_operation_is_one_native_call(calls):
    attend()
    denoiser_block(**block_inputs())
    reverse_loops([make_chain()] * 3)
    assert [call.op for call in calls] == ["cross_attention", "denoiser_block", "reverse_loop"]
    assert calls[-1].chains == 3


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_attention_alone_takes_the_reference_where_an_input_wants_a_gradient(name, calls):
    given = attention_inputs()
    given[name].requires_grad_()
    cross_attention(**given).sum().backward()
    assert given[name].grad is not None and calls == []
    with pytest.raises(BackendUnavailable, match="no backward pass of attention alone; gradients need the reference"):
        cross_attention(**given, backend="cpp")
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not cross_attention(**given, backend="cpp").requires_grad
    assert len(calls) == 2


def test_one_weight_that_wants_a_gradient_is_enough(calls):
    chain, block = make_chain(), block_inputs()
    bias = chain.weights.blocks[1].fc2_bias.clone().requires_grad_()
    blocks = (chain.weights.blocks[0], chain.weights.blocks[1]._replace(fc2_bias=bias))
    wanting = chain._replace(weights=chain.weights._replace(blocks=blocks))
    without, found = reverse_loops([chain, wanting])
    assert not without.requires_grad
    found.sum().backward()
    assert bias.grad.all()
    assert [(call.op, call.chains) for call in calls] == [("reverse_loop", 2), ("reverse_loop_backward", 1)]
    block["weights"] = blocks[1]._replace(fc2_bias=torch.zeros(16, requires_grad=True))
    assert denoiser_block(**block).requires_grad and len(calls) == 3


def test_no_gradient_step_is_no_gradient(calls):
    chain = make_chain(make_denoiser())
    assert not reverse_loops([chain._replace(grad_steps=0)], backend="cpp")[0].requires_grad
    chains = [chain._replace(grad_steps=0), chain._replace(grad_steps=1)]
    assert [out.requires_grad for out in reverse_loops(chains)] == [False, True]
    assert [(call.chains, call.tapes) for call in calls] == [(1, 0), (2, 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_dtype_that_the_core_does_not_compute_takes_the_reference(dtype, calls):
    assert attend(**{name: torch.ones(2, 3, 16, dtype=dtype) for name in "qkv"}).dtype == dtype
    assert calls == []
    with pytest.raises(BackendUnavailable, match="computes float32 and float64"):
        attend(**{name: torch.ones(2, 3, 16, dtype=dtype) for name in "qkv"}, backend="cpp")


def test_a_meta_tensor_takes_the_reference(calls):
    assert attend(**{name: torch.ones(2, 3, 16, device="meta") for name in "qkv"}).shape == (2, 3, 16)
    assert calls == []


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_torch_func_take_the_reference(calls):
    x = torch.randn(4, 2, 3, 16)

    def attended(q):
        return cross_attention(q, q, q, num_heads=4)

    with torch.no_grad():
        found = torch.func.vmap(attended)(x)
        assert calls == []
        torch.testing.assert_close(found, torch.stack([attended(q) for q in x]))
    gradient = torch.func.grad(lambda q: attended(q).square().sum())(x[0])
    leaf = x[0].clone().requires_grad_()
    attended(leaf).square().sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


def test_forward_mode_never_loses_a_tangent(calls):
    """torch has no forward mode for the attention inside the reference on a CPU: that error, not a result without."""
    q = torch.randn(2, 3, 16)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(NotImplementedError, match="forward AD"):
            attend(q=dual, k=q, v=q)
        with pytest.raises(BackendUnavailable, match="forward-mode"):
            attend(q=dual, k=q, v=q, backend="cpp")
    assert calls == []


def test_the_context_decides_where_no_argument_does(calls):
    with use_backend("reference"):
        attend()
        assert calls == []
        attend(backend="cpp")
    assert len(calls) == 1
