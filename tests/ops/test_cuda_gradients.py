"""Gradients on a CUDA device: who is refused and why, without one; and on one, that they are right."""

import pytest
import torch

from rohydr_fast.errors import BackendUnavailable
from rohydr_fast.ops import support
from rohydr_fast.ops.chain_lists import ChainLists
from rohydr_fast.ops.denoiser_block import cuda as block_cuda
from rohydr_fast.ops.denoiser_block import denoiser_block
from rohydr_fast.ops.reverse_loop import Chain, cuda, reverse_loop
from rohydr_fast.ops.reverse_loop.native import _lists
from tests.cuda_sim import test_denoiser_block as blocks
from tests.cuda_sim import test_reverse_loop as loops
from tests.cuda_sim.test_reverse_loop import convert, real
from tests.ops.gradient_cases import with_leaves
from tests.ops.test_cuda_loop import CORE, HAS_DEVICE, SIZES, gpu, needs_cuda_build, on_device

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
BLOCK = block_cuda.BlockSizes(tokens=50, hidden=256, width=64, num_heads=4)
H100 = 227 * 1024
without_device = pytest.mark.skipif(HAS_DEVICE, reason="there is a CUDA device")


@needs_cuda_build
@pytest.mark.parametrize(
    "change, why",
    [
        (dict(width=48), "takes a width of 32, 64 or 128, and this has 48"),
        (dict(num_heads=32), "takes heads of 4, 8, 16, 32 or 64 channels, and this has 2"),
        (dict(tokens=129), "takes up to 128 tokens in its way back, and this has 129"),
    ],
)
def test_limits_are_told_in_a_sentence(change, why):
    assert why in block_cuda.refusal(BLOCK._replace(**change), "bfloat16", H100)
    assert why in cuda.refusal(SIZES._replace(**change), "bfloat16", H100, backward=True)


@needs_cuda_build
def test_what_fits_on_an_h100():
    fits = [("bfloat16", 64, 128), ("bfloat16", 128, 64), ("float32", 64, 64), ("float32", 128, 32)]
    for dtype, width, tokens in fits:
        sizes = dict(width=width, hidden=4 * width, tokens=tokens)
        assert block_cuda.refusal(BLOCK._replace(**sizes), dtype, H100) is None
        assert cuda.refusal(SIZES._replace(**sizes), dtype, H100, backward=True) is None
    large = SIZES._replace(width=128, hidden=512, tokens=64)
    assert "bytes of shared memory for the way back" in cuda.refusal(large, "float32", H100, backward=True)
    assert "bytes of shared memory" in block_cuda.refusal(BLOCK, "float32", 48 * 1024)


@pytest.fixture
def a_device(monkeypatch):
    """As if there were one."""
    monkeypatch.setattr(support, "cuda_device", lambda: (True, "there is a device"))
    monkeypatch.setattr(block_cuda, "refusal", lambda sizes, dtype: "it is too large" if sizes.width > 64 else None)
    monkeypatch.setattr(cuda, "refusal", lambda sizes, dtype, backward=False: "too large" if backward else None)


@pytest.mark.parametrize(
    "call, why",
    [
        (dict(device="cpu"), "these are on cpu"),
        (dict(dtype=torch.float64), "these are float64"),
        (dict(needs_grad=True, grad_of=("bfloat16 weights",)), "no gradient with respect to bfloat16 weights"),
        (dict(transformed=True), "torch.func"),
        (dict(block=BLOCK._replace(width=128)), "it is too large"),
    ],
)
def test_each_refusal_of_a_block_has_its_reason(a_device, call, why):
    usable, reason = support.cuda_block(**{"device": "cuda", "dtype": torch.float32, **call})
    assert not usable and why in reason


def test_calls_with_a_gradient_are_taken(a_device):
    facts = dict(device="cuda", dtype=torch.bfloat16, needs_grad=True)
    assert support.cuda_block(**facts, block=BLOCK) == (True, "there is a device")
    assert support.cuda_loop(**facts) == (True, "there is a device")
    assert support.cuda_loop(**facts, loops=(SIZES,)) == (False, "too large")
    assert support.cuda_loop(**(facts | {"needs_grad": False}), loops=(SIZES,)) == (True, "there is a device")


@without_device
def test_without_a_device_the_named_backend_says_so():
    with pytest.raises(BackendUnavailable, match="CUDA"):
        denoiser_block(**blocks.make(1, (64, 4), tokens=3, keys=3), backend="cuda")


@needs_cuda_build
def test_the_entries_name_what_is_wrong():
    for arguments, message in [
        ((3, True, 0, 0, False), "the arguments must be a dict, got int"),
        (({}, True, 0, 0, False), "must have the field samples"),
        (({"samples": 1}, True, 0, 0, True), "must have the field tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            CORE.denoiser_block_cuda(*arguments)
    with pytest.raises(ValueError, match="must have the field samples"):
        CORE.reverse_loop_backward_cuda({}, 64, 4, True, 0, 0)


@needs_cuda_build
@without_device
@DTYPES
@pytest.mark.parametrize("backward", [False, True])
def test_the_block_takes_all_that_a_call_gives_and_then_misses_the_device(dtype, backward):
    case = convert(blocks.make(2, (64, 4), tokens=9, keys=5), dtype)
    given = [case[name] for name in ("x", "modulation", "cond_kv")]
    options = (case["num_heads"], case["token_mask"], case["key_mask"])
    fields, kept = block_cuda.arguments(*given, list(case["weights"]), *options, backward=backward)
    names = ("out_gradient", "x_gradient", "modulation_gradient", "cond_gradient", "weight_gradients", "out")
    fields |= dict.fromkeys(names, kept[0].data_ptr())
    with pytest.raises(RuntimeError, match="denoiser_block: the CUDA launch failed on device 0: .* \\(cudaError"):
        CORE.denoiser_block_cuda(fields, dtype == torch.bfloat16, 0, 0, backward)
    for name in fields.keys() - set(names):
        incomplete = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(ValueError, match=f"must have the field {name}"):
            CORE.denoiser_block_cuda(incomplete, dtype == torch.bfloat16, 0, 0, backward)


@needs_cuda_build
@without_device
@DTYPES
def test_the_way_back_of_a_loop_takes_all_that_a_chain_gives_and_then_misses_the_device(dtype):
    case = convert(loops.make(1, (64, 4), samples=2), dtype)
    chain = Chain(**{"grad_steps": None, **case})
    lists, states = ChainLists(*_lists([chain])[1:]), torch.zeros(1, *chain.x.shape)
    memory = cuda._Memory(states, torch.zeros(chain.x.shape), lists, 0, lists.weights, steps=1)
    assert memory.fields["steps"] == 1
    results = ("block_modulation_gradient", "final_modulation_gradient", "cond_gradient", "weight_gradients")
    fields = memory.fields | dict.fromkeys(results, states.data_ptr())
    with pytest.raises(RuntimeError, match="reverse_loop: the CUDA launch failed on device 0: .* \\(cudaError"):
        CORE.reverse_loop_backward_cuda(fields, 64, 4, dtype == torch.bfloat16, 0, 0)
    for name in results:
        with pytest.raises(ValueError, match=f"{name} must not be null"):
            CORE.reverse_loop_backward_cuda(fields | {name: 0}, 64, 4, dtype == torch.bfloat16, 0, 0)


@needs_cuda_build
@pytest.mark.parametrize("op", ["denoiser_block", "reverse_loops_with_states", "reverse_loops_backward"])
def test_the_operations_have_an_implementation_on_cuda(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"rohydr_fast::{op}", "CUDA")


def gradients(function, case: dict, out_gradient: torch.Tensor, dtype: torch.dtype, **options) -> dict:
    """By name, of the public function on the device."""
    given, leaves = with_leaves(on_device(case, dtype), dtype)
    out = function(**given, **options)
    out.backward(out_gradient.to(out.device, dtype))
    return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}


def exact_gradients(function, case: dict, out_gradient: torch.Tensor, **options) -> dict:
    given, leaves = with_leaves(case, torch.float64)
    function(**given, backend="reference", **options).backward(out_gradient.double())
    return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}


def problem(operation: str, seed: int, network: tuple[int, int], dtype: torch.dtype):
    """The function, its keywords, and a gradient of its result."""
    bf16 = dtype == torch.bfloat16
    tokens = 30 if network[0] == 128 and not bf16 else 50
    if operation == "denoiser_block":
        case, function = blocks.make(seed, network, bf16=bf16, tokens=tokens, keys=100, samples=5), denoiser_block
    else:
        sizes = dict(samples=5, tokens=tokens, keys=100, channels=32, steps=4)
        case, function = loops.make(seed, network, bf16=bf16, **sizes), reverse_loop
    return function, case, blocks.out_gradient_of(case, bf16)


@pytest.mark.parametrize("operation", ["denoiser_block", "reverse_loop", "reverse_loop last"])
@pytest.mark.parametrize("network", [(32, 8), (64, 16), (64, 4), (64, 1), (128, 8)], ids=str)
@DTYPES
class TestOnADevice:
    pytestmark = gpu

    def test_the_error_is_at_most_three_times_that_of_pytorch(self, operation, network, dtype):
        function, case, gradient = problem(operation.split()[0], 3, network, dtype)
        options = {"grad_steps": 2} if "last" in operation else {}
        exact = exact_gradients(function, case, gradient, **options)
        found = gradients(function, case, gradient, dtype, backend="cuda", **options)
        pytorch = gradients(function, case, gradient, dtype, backend="reference", **options)
        rows, seen = real(case), 0
        for name, wanted in exact.items():
            places = rows if name == "['x']" else slice(None)
            value, same, wanted = found[name].cpu()[places], pytorch[name].cpu()[places], wanted[places]
            if not wanted.any():
                assert not value.any(), name
                continue
            kernel, allowed = blocks.distance(value, wanted), 3 * blocks.distance(same, wanted) + 1e-6
            assert kernel <= allowed, (name, kernel, allowed)
            seen += 1
        assert seen >= 10

    def test_the_same_bits_20_times_and_on_another_stream(self, operation, network, dtype):
        function, case, gradient = problem(operation.split()[0], 4, network, dtype)
        options = {"backend": "cuda"} | ({"grad_steps": 1} if "last" in operation else {})
        first = gradients(function, case, gradient, dtype, **options)
        for _ in range(20):
            again = gradients(function, case, gradient, dtype, **options)
            assert all(torch.equal(first[name], again[name]) for name in first)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            other = gradients(function, case, gradient, dtype, **options)
        stream.synchronize()
        assert all(torch.equal(first[name], other[name]) for name in first)
