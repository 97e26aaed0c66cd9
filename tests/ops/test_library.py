"""The registered operations: what torch asks of them, and that of an input only the numbers matter."""

import importlib

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from rohydr_fast.errors import BackendUnavailable
from rohydr_fast.ops import library, philox
from rohydr_fast.ops.cross_attention import cross_attention
from rohydr_fast.ops.denoiser_block import denoiser_block
from rohydr_fast.ops.reverse_loop import NoiseKey, reverse_loop, reverse_loops
from tests.native_spy import needs_core, spy_on_core
from tests.ops.inputs import BATCH, TOKENS, WIDTH, attention_inputs, block_inputs, loop_arguments, make_chain
from tests.ops.operations import OPERATIONS

pytestmark = [needs_core, pytest.mark.usefixtures("one_thread")]

SIZES = {"usual": {}, "no-sample": {"batch": 0}, "no-token": {"tokens": 0}, "one": {"batch": 1, "tokens": 1, "keys": 1}}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [True, False], ids=["masks", "no-masks"])
@pytest.mark.parametrize("op", OPERATIONS)
def test_opcheck(op, masked, size):
    operation, args = OPERATIONS[op](masked=masked, **SIZES[size])
    done = torch.library.opcheck(operation, args)
    assert set(done.values()) == {"SUCCESS"} and len(done) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", OPERATIONS)
def test_fake_results_have_the_shape_dtype_and_strides_of_real_ones(op, size, dtype):
    operation, args = OPERATIONS[op](dtype=dtype, **SIZES[size])
    real = operation(*args)
    with FakeTensorMode() as mode:
        fake = operation(*tree_map_only(torch.Tensor, mode.from_tensor, args))
    for a, b in zip(tree_leaves(real), tree_leaves(fake), strict=True):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        assert a.is_contiguous() and b.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("masked", [True, False], ids=["masks", "no-masks"])
def test_each_operation_agrees_with_the_reference(dtype, masked):
    bound = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else dict(rtol=1e-10, atol=1e-10)
    given = attention_inputs(dtype=dtype, masked=masked)
    found, expected = (cross_attention(**given, backend=name) for name in ("cpp", "reference"))
    torch.testing.assert_close(found, expected, **bound)
    for rows in (True, False):
        given = block_inputs(dtype=dtype, masked=masked, rows=rows)
        found, expected = (denoiser_block(**given, backend=name) for name in ("cpp", "reference"))
        check_tokens(found, expected, given.get("token_mask"), bound)
    chains = make_chain(dtype=dtype, masked=masked), make_chain(dtype=dtype, tokens=2, keys=3, masked=False, modality=0)
    results = [reverse_loops(chains, backend=name) for name in ("cpp", "reference")]
    for chain, found, expected in zip(chains, *results, strict=True):
        scale = expected.abs().max().clamp(min=1)  # an untrained chain grows
        check_tokens(found / scale, expected / scale, chain.token_mask, bound)


def check_tokens(found, expected, token_mask, bound):
    if token_mask is None:
        token_mask = torch.ones(found.shape[:2], dtype=torch.bool)
    torch.testing.assert_close(found[token_mask], expected[token_mask], **bound)
    assert not found[~token_mask].any()


def test_several_chains_of_any_size_give_the_bits_of_each_alone(monkeypatch):
    chains = [make_chain(), make_chain(batch=1, tokens=9, keys=2, steps=6, masked=False), make_chain(tokens=0)]
    calls = spy_on_core(monkeypatch)
    together = reverse_loops(chains)
    assert [(call.op, call.chains) for call in calls] == [("reverse_loop", 2)]
    for chain, found in zip(chains, together, strict=True):
        args, options = loop_arguments(chain)
        assert torch.equal(reverse_loop(*args, **options), found)
    assert reverse_loops([]) == []


def test_an_empty_result_calls_nothing(monkeypatch):
    calls = spy_on_core(monkeypatch)
    for size in ({"batch": 0}, {"tokens": 0}):
        assert cross_attention(**attention_inputs(**size)).numel() == 0
        assert denoiser_block(**block_inputs(**size)).numel() == 0
        assert [x.numel() for x in reverse_loops([make_chain(**size)])] == [0]
    assert calls == []


def test_the_threads_are_those_of_torch_at_the_time_of_the_call(monkeypatch):
    calls = spy_on_core(monkeypatch)
    chain = make_chain()
    for threads in (2, 1):
        torch.set_num_threads(threads)
        reverse_loops([chain])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)  # more than the core takes
    reverse_loops([chain])
    assert [call.threads for call in calls] == [2, 1, 256]


def strided(tensor):
    """The same numbers with the first two dimensions swapped in memory."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else every_other(tensor)


def every_other(tensor):
    out = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    out[..., ::2] = tensor
    return out[..., ::2]


def offset_by_one(tensor):
    """Contiguous, but one element into its storage."""
    out = tensor.new_zeros(tensor.numel() + 1)[1:].view(tensor.shape)
    return out.copy_(tensor)


def misaligned(tensor):
    """Contiguous, and one byte away from any address that its dtype asks for."""
    out = torch.frombuffer(bytearray(tensor.numel() * tensor.element_size() + 1), dtype=torch.uint8)[1:]
    out = torch.frombuffer(out.numpy().data, dtype=tensor.dtype).view(tensor.shape)
    return out.copy_(tensor)


def flipped(tensor):
    """From a flip of a flip; of a bool or an integer tensor too."""
    return tensor.flip(0).flip(0)


def negated_view(tensor):
    """A tensor whose numbers are stored with the other sign (torch's negative bit)."""
    if not tensor.is_floating_point():
        return tensor
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg()
    return view


VARIANTS = [strided, every_other, offset_by_one, misaligned, flipped, negated_view]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
@pytest.mark.parametrize("op", OPERATIONS)
def test_how_an_input_lies_in_memory_changes_no_bit(op, variant):
    operation, args = OPERATIONS[op]()
    expected = operation(*args)
    found = operation(*tree_map_only(torch.Tensor, lambda x: variant(x) if x.numel() and x.dim() else x, args))
    for a, b in zip(tree_leaves(expected), tree_leaves(found), strict=True):
        assert torch.equal(a, b) and b.is_contiguous()


@pytest.mark.parametrize("variant", [strided, every_other, offset_by_one], ids=lambda variant: variant.__name__)
def test_how_an_input_lies_in_memory_changes_no_bit_through_the_public_functions(variant):
    def moved(arguments):
        return tree_map_only(torch.Tensor, variant, arguments)

    given = attention_inputs()
    assert torch.equal(cross_attention(**moved(given)), cross_attention(**given))
    given = block_inputs()
    assert torch.equal(denoiser_block(**moved(given)), denoiser_block(**given))
    chain = make_chain()
    assert torch.equal(reverse_loops([moved(chain)])[0], reverse_loops([chain])[0])


def test_inputs_that_repeat_one_row_with_stride_0_equal_their_copies():
    x = torch.randn(1, TOKENS, WIDTH).expand(BATCH, -1, -1)
    kv = torch.randn(1, 1, WIDTH).expand(BATCH, 4, -1)
    mask = torch.ones(1, 1, dtype=torch.bool).expand(BATCH, 4)
    assert (x.stride(0), kv.stride(1), mask.stride()) == (0, 0, (0, 0))
    found = cross_attention(x, kv, kv, num_heads=2, key_mask=mask)
    copies = [part.clone(memory_format=torch.contiguous_format) for part in (x, kv, kv)]
    assert torch.equal(found, cross_attention(*copies, num_heads=2, key_mask=mask.clone()))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("op", OPERATIONS)
def test_inputs_are_not_written_and_results_are_fresh(op):
    operation, args = OPERATIONS[op]()
    tensors = []
    tree_map_only(torch.Tensor, tensors.append, args)
    before = [x.clone().reshape(-1).view(torch.uint8) for x in tensors]
    first, second = operation(*args), operation(*args)
    assert all(torch.equal(x.reshape(-1).view(torch.uint8), old) for x, old in zip(tensors, before, strict=True))
    results = [x for x in tree_leaves((first, second)) if x.numel()]
    addresses = [x.data_ptr() for x in [*tensors, *results]]
    assert len(set(addresses[len(tensors) :])) == len(results)
    assert not set(addresses[: len(tensors)]) & set(addresses[len(tensors) :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bfloat16_weights_give_the_bits_of_the_same_weights_widened(dtype):
    chain, block = make_chain(dtype=dtype), block_inputs(dtype=dtype)
    for name in ("cpp", "reference"):
        narrow = chain._replace(weights=chain.weights.to(torch.bfloat16))
        wide = chain._replace(weights=narrow.weights.to(dtype))
        assert torch.equal(*(reverse_loops([c], backend=name)[0] for c in (narrow, wide)))
        narrow = {**block, "weights": block["weights"].to(torch.bfloat16)}
        wide = {**block, "weights": narrow["weights"].to(dtype)}
        assert torch.equal(*(denoiser_block(**given, backend=name) for given in (narrow, wide)))
    some = chain.weights._replace(in_weight=chain.weights.in_weight.bfloat16())  # each by itself
    wide = chain.weights._replace(in_weight=some.in_weight.to(dtype))
    assert torch.equal(*(reverse_loops([chain._replace(weights=w)])[0] for w in (some, wide)))


def test_the_registered_noise_is_that_of_philox_for_any_seed():
    for seed in (0, 5, 2**63 - 1, 2**63, 2**64 - 1):
        found = torch.ops.rohydr_fast.philox_normal(torch.tensor([3, 2**48 - 1]), library.signed(seed), 2, 4, 1, 11)
        request = dict(modality=2, step=4, stream=1, count=11)
        assert torch.equal(found, philox.normal(seed, [3, 2**48 - 1], **request))


def test_integers_of_numpy_and_narrow_sample_ids_are_integers():
    chain = make_chain(seed=2**64 - 1)
    ids = chain.noise.sample_ids.to(torch.int32)
    same = chain._replace(noise=NoiseKey(np.uint64(2**64 - 1), ids, np.int8(2)))
    for name in ("cpp", "reference"):
        assert torch.equal(*(reverse_loops([c], backend=name)[0] for c in (chain, same)))


@pytest.mark.parametrize("op", ["cross_attention", "reverse_loops"])
def test_a_direct_call_that_records_a_gradient_is_refused_instead_of_giving_none(op):
    operation, args = OPERATIONS[op]()
    wanting = tree_map_only(torch.Tensor, lambda x: x.clone().requires_grad_(x.is_floating_point()), args)
    with pytest.raises(BackendUnavailable, match=f"rohydr_fast.{op}: its inputs must not require a gradient"):
        operation(*wanting)
    with torch.no_grad():
        first, second = tree_leaves(operation(*args)), tree_leaves(operation(*wanting))
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(first, second, strict=True))


def test_a_meta_tensor_gives_a_shape_and_a_missing_device_is_torchs_own_error():
    operation, args = OPERATIONS["cross_attention"](masked=False)
    meta = tree_map_only(torch.Tensor, lambda x: x.to("meta"), args)
    assert operation(*meta).shape == args[0].shape
    if not torch.cuda.is_available():
        return
    with pytest.raises(NotImplementedError):
        operation(*tree_map_only(torch.Tensor, lambda x: x.cuda(), args))


def test_registering_again_replaces_and_a_second_copy_does_not_fail(monkeypatch):
    import sys

    given = attention_inputs()
    expected = cross_attention(**given)
    importlib.reload(library)
    assert library.LIBRARY is not None and torch.equal(cross_attention(**given), expected)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "rohydr_fast.ops.library")
        assert importlib.import_module("rohydr_fast.ops.library").LIBRARY is None
    sys.modules["rohydr_fast.ops"].library = library
    assert torch.equal(cross_attention(**given), expected)
