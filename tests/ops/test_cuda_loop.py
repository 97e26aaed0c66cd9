"""The reverse loop on a CUDA device: who is refused and why, without one; and on one, that it is right."""

import pytest
import torch

from rohydr_fast import _native
from rohydr_fast.errors import BackendUnavailable
from rohydr_fast.ops import support
from rohydr_fast.ops.chain_lists import ChainLists
from rohydr_fast.ops.reverse_loop import Chain, cuda, reverse_loop, reverse_loops
from rohydr_fast.ops.reverse_loop.native import _lists
from tests.cuda_sim.test_reverse_loop import convert, error, make, real, reference
from tests.ops.inputs import make_chain

CORE = _native.load() if _native.status()[0] else None
WITH_CUDA = CORE is not None and CORE.build_info()["cuda"]
needs_cuda_build = pytest.mark.skipif(not WITH_CUDA, reason="the native core is built without CUDA")
HAS_DEVICE = WITH_CUDA and torch.cuda.is_available()
gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_DEVICE, reason="no CUDA device that this torch and core can use")]

SIZES = cuda.Sizes(tokens=50, channels=32, hidden=256, width=64, num_heads=4)


@needs_cuda_build
@pytest.mark.parametrize(
    "change, why",
    [
        (dict(width=48), "takes a width of 32, 64 or 128, and this has 48"),
        (dict(num_heads=5), "takes heads of 4, 8, 16, 32 or 64 channels, and this has 0"),
        (dict(num_heads=32), "takes heads of 4, 8, 16, 32 or 64 channels, and this has 2"),
        (dict(tokens=129), "takes up to 128 tokens of this width and type, and this has 129"),
    ],
)
def test_limits_are_told_in_a_sentence(change, why):
    assert why in cuda.refusal(SIZES._replace(**change), "bfloat16", 227 * 1024)


@needs_cuda_build
@pytest.mark.parametrize("sizes, dtype", [(dict(), "float32"), (dict(width=128, tokens=65, hidden=512), "bfloat16")])
def test_only_the_kernel_of_tiles_limits_the_channels(sizes, dtype):
    """In bfloat16 that is the kernel of W = 128 with many tokens."""
    large = SIZES._replace(**sizes, channels=290)
    assert "takes up to half as many channels as the MLP is wide, and this has 290" in cuda.refusal(large, dtype, 2**20)
    assert cuda.refusal(SIZES._replace(channels=290), "bfloat16", 2**20) is None


@needs_cuda_build
def test_what_fits_is_not_refused_and_small_devices_are_told_apart():
    assert cuda.refusal(SIZES, "bfloat16", 227 * 1024) is None
    assert cuda.refusal(SIZES, "float32", 227 * 1024) is None
    assert "bytes of shared memory" in cuda.refusal(SIZES, "float32", 48 * 1024)


@needs_cuda_build
def test_two_blocks_of_the_papers_size_fit_on_a_multiprocessor():
    """228 KiB, of which each block takes one more."""
    used = CORE.reverse_loop_cuda_shared_bytes(50, 32, 256, 64, 4, True)
    assert 2 * (used + 1024) <= 228 * 1024


@pytest.fixture
def a_device(monkeypatch):
    """As if there were one."""
    monkeypatch.setattr(support, "cuda_device", lambda: (True, "there is a device"))
    monkeypatch.setattr(cuda, "refusal", lambda sizes, dtype, **of: "it is too large" if sizes.width > 64 else None)


@pytest.mark.parametrize(
    "call, why",
    [
        (dict(device="cpu"), "these are on cpu"),
        (dict(dtype=torch.float64), "these are float64"),
        (dict(needs_grad=True, grad_of=("position",)), "no gradient with respect to position"),
        (dict(transformed=True), "torch.func"),
        (dict(loops=(SIZES, SIZES._replace(width=128))), "it is too large"),
    ],
)
def test_each_refusal_has_its_reason(a_device, call, why):
    usable, reason = support.cuda_loop(**{"device": "cuda", "dtype": torch.float32, **call})
    assert not usable and why in reason


def test_a_call_that_fits_is_taken(a_device):
    assert support.cuda_loop(device="cuda", dtype=torch.bfloat16, loops=(SIZES,)) == (True, "there is a device")


@pytest.mark.skipif(HAS_DEVICE, reason="there is a CUDA device")
def test_without_a_device_the_named_backend_says_so():
    with pytest.raises(BackendUnavailable, match="CUDA"):
        reverse_loops([make_chain()], backend="cuda")


@needs_cuda_build
@pytest.mark.parametrize(
    "arguments, message",
    [
        (([], 64, 4, True, 0, 0), "list of one to three"),
        (([3], 64, 4, True, 0, 0), "must be a dict, got int"),
        (([{}], 64, 4, True, 0, 0), "must have the field samples"),
        (([{"samples": -1}], 64, 4, True, 0, 0), "samples must be an integer"),
        (([{}] * 4, 64, 4, True, 0, 0), "list of one to three"),
    ],
)
def test_the_entry_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        CORE.reverse_loop_cuda(*arguments)


@needs_cuda_build
@pytest.mark.skipif(HAS_DEVICE, reason="there is a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_entry_takes_all_that_a_chain_gives_and_then_misses_the_device(dtype):
    case = convert(make(1, (64, 4), samples=2), dtype)
    chain = Chain(**{"grad_steps": None, **case})
    lists = ChainLists(*_lists([chain])[1:])
    memory = cuda._Memory(chain.x, torch.zeros(chain.x.shape), lists, 0, lists.weights)
    assert all(address % 16 == 0 for name, address in memory.fields.items() if name in ("position", "coefficients"))
    with pytest.raises(RuntimeError, match="the CUDA launch failed on device 0: .* \\(cudaError"):
        CORE.reverse_loop_cuda([memory.fields], 64, 4, dtype == torch.bfloat16, 0, 0)


def on_device(case: dict, dtype: torch.dtype) -> dict:
    def moved(value):
        if isinstance(value, torch.Tensor):
            return value.cuda()
        if isinstance(value, tuple):
            parts = [moved(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    return {name: moved(value) for name, value in convert(case, dtype).items()}


@pytest.mark.parametrize("network", [(32, 8), (64, 16), (64, 4), (64, 1), (128, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
class TestOnADevice:
    pytestmark = gpu

    def test_the_error_is_at_most_twice_that_of_pytorch(self, network, dtype):
        case = make(3, network, bf16=dtype == torch.bfloat16, samples=5, tokens=50, keys=100, channels=32, steps=10)
        exact, rows = reference(**convert(case, torch.float64)), real(case)
        given = on_device(case, dtype)
        found = reverse_loop(**given, backend="cuda").float().cpu()
        pytorch = reverse_loop(**given, backend="reference").float().cpu()
        assert error(found, exact, rows) <= 2 * error(pytorch, exact, rows) + 1e-6

    def test_the_same_bits_again_on_another_stream_and_by_the_automatic_choice(self, network, dtype):
        case = make(4, network, samples=3, tokens=20, keys=30, steps=5)
        given = on_device(case, dtype)
        first = reverse_loop(**given, backend="cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            assert torch.equal(first, reverse_loop(**given, backend="cuda"))
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(first, reverse_loop(**given))
