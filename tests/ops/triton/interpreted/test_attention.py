"""`cross_attention` by the Triton kernels in the interpreter: accuracy, masks, bits, refusals, compilation."""

import pytest
import torch

from rohydr_fast import backend as use_backend
from rohydr_fast.errors import BackendUnavailable
from rohydr_fast.ops.cross_attention import cross_attention
from rohydr_fast.ops.triton.status import HEAD_DIMS, MAX_WIDTH

from ...gradient_cases import gradients, with_leaves
from ...inputs import attention_inputs
from .rule import attention_problem, check

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_result_and_gradients_of_every_head_size(head_dim, dtype):
    check("cross_attention", attention_problem(head_dim, head_dim, max(1, 8 // head_dim), dtype), dtype)


SIZES = {
    "one token, one key": dict(samples=1, tokens=1, keys=1),
    "more tokens than keys": dict(samples=2, tokens=13, keys=3),
    "more tokens and keys than a program takes": dict(samples=2, tokens=67, keys=71),
}


MASKS = {
    "no mask": lambda key: None,
    "holes": lambda key: key % 3 != 1,
    "the last key alone": lambda key: key == key[..., -1:],  # what a program takes first has no key
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_result_and_gradients_of_odd_sizes(sizes, mask, dtype):
    given = attention_problem(1, 8, 2, dtype, **sizes)
    given["key_mask"] = mask(torch.arange(sizes["keys"]).expand(sizes["samples"], -1))
    check("cross_attention", given, dtype)


def test_no_key_gives_zeros_and_no_gradient_and_masked_keys_are_not_looked_at():
    given = attention_problem(1, 8, 2, torch.float32)
    given["key_mask"] = torch.tensor([[True, False, True, True, False], [False] * 5, [True] * 5])
    way, hidden = torch.ones(3, 7, 16), ~given["key_mask"][..., None]
    poisoned = {**given, **{name: given[name].masked_fill(hidden, torch.nan) for name in "kv"}}
    found = cross_attention(**given, backend="triton")
    assert not found[1].any() and found[[0, 2]].all()
    assert torch.equal(cross_attention(**poisoned, backend="triton"), found)
    first, second = (gradients("cross_attention", part, way, backend="triton") for part in (given, poisoned))
    for name, gradient in first.items():
        assert torch.equal(second[name], gradient) and not gradient[1].any() and gradient[[0, 2]].any(), name
    assert not any(first[f"['{name}']"].masked_select(hidden).any() for name in "kv")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_again_and_for_a_sample_alone(dtype):
    given = attention_problem(4, 16, 1, dtype)
    given["key_mask"] = torch.arange(5) < torch.tensor([[5], [3], [4]])
    way = torch.randn(3, 7, 16).to(dtype)
    first, second = (gradients("cross_attention", given, way, dtype, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = {name: value if name == "num_heads" else value[1:2] for name, value in given.items()}
    together = cross_attention(**given, backend="triton")
    assert torch.equal(cross_attention(**alone, backend="triton"), together[1:2])


def test_keys_and_values_that_lie_side_by_side():
    """As a product for both gives them; and a gradient that is one number for all."""
    kv, q = torch.randn(2, 5, 32, requires_grad=True), torch.randn(2, 7, 16)
    found, expected = (
        torch.autograd.grad(cross_attention(q, *kv.chunk(2, -1), num_heads=2, backend=name).sum(), kv)[0]
        for name in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", "qkv")
def test_only_what_wants_a_gradient_gets_one(wanted):
    given = attention_problem(2, 4, 2, torch.float32)
    given[wanted].requires_grad_()
    cross_attention(**given, backend="triton").square().sum().backward()
    assert [name for name in "qkv" if given[name].grad is not None] == [wanted]
    with torch.no_grad():
        assert not cross_attention(**given, backend="triton").requires_grad


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [dict(samples=0), dict(tokens=0)], ids=str)
def test_an_empty_batch_or_sequence_gives_zero_gradients(sizes, masked):
    given = attention_problem(3, 8, 1, torch.float32, **sizes)
    given["key_mask"] = torch.ones(given["k"].shape[:2], dtype=torch.bool) if masked else None
    found = gradients("cross_attention", given, torch.zeros(given["q"].shape), backend="triton")
    assert all(gradient is not None and not gradient.any() for gradient in found.values())


def test_tokens_of_more_channels_than_a_block_takes():
    width = 2 * MAX_WIDTH
    given = {name: torch.randn(1, 2, width) for name in "qkv"} | {"num_heads": width // 64}
    found, expected = (cross_attention(**given, backend=name) for name in ("triton", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


REFUSED = {
    "heads": (8, torch.float32, "take heads of 4, 8, 16, 32, 64 channels, and these have 2"),
    "dtype": (4, torch.float64, "compute float32 and bfloat16, and these are float64"),
    "device": (4, "meta", "run tensors on a CUDA device, and these are on meta"),
}


@pytest.mark.parametrize(("num_heads", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_the_kernels_cannot_do_is_refused_with_the_reason(num_heads, kind, words):
    given = attention_inputs(masked=False) | {"num_heads": num_heads}
    given |= {name: given[name].to(kind) for name in "qkv"}
    sentence = (
        f"^cross_attention: {{}} must be usable, got 'triton', which is not: the Triton kernels {words}. Usable: "
    )
    with pytest.raises(BackendUnavailable, match=sentence.format("backend")):
        cross_attention(**given, backend="triton")
    with use_backend("triton"), pytest.raises(BackendUnavailable, match=sentence.format("the backend of .*")):
        cross_attention(**given)


def test_a_gradient_is_differentiable_once():
    q = torch.randn(1, 2, 16, requires_grad=True)
    (of_q,) = torch.autograd.grad(cross_attention(q, q, q, num_heads=2, backend="triton").sum(), q, create_graph=True)
    with pytest.raises(BackendUnavailable, match="cross_attention: its gradient on backend 'triton' must not be diff"):
        of_q.sum().backward()


def test_the_compiler_traces_the_call_and_its_gradients():
    given, leaves = with_leaves(attention_problem(2, 8, 2, torch.float32), torch.float32)

    def loss():
        return cross_attention(**given, backend="triton").square().sum()

    expected = torch.autograd.grad(loss(), list(leaves.values()))
    run = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(run(), list(leaves.values())), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
