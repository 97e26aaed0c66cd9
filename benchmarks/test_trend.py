"""Times of single operations on every usable backend, to see a trend from commit to commit.

    pytest benchmarks --benchmark-only [--benchmark-autosave] [--benchmark-compare]

Small sizes, one thread. Whether a backend is right is what tests/ops asks; plain `pytest` does not run this file.
"""

import pytest
import torch

import rohydr_fast
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.ops import philox
from rohydr_fast.ops.cross_attention import cross_attention
from rohydr_fast.ops.denoiser_block import denoiser_block

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark, or -e '.[bench]'")

TOKENS, KEYS, CHANNELS = 50, 100, 32
SIZES = {"narrow": (32, 4, 4), "paper": (64, 6, 4)}  # W, L, H


def usable(op: str) -> list[str]:
    """The backends that run `op` on the CPU of this machine."""
    return [name for name, ok, _ in rohydr_fast.explain(op) if ok and name in ("reference", "cpp")]


@pytest.fixture(autouse=True)
def quiet_torch():
    """One thread and no gradients: trends of the kernels, not of the pools."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def there_and_back(forward, parameters) -> None:
    """The sum of squares of the results of `forward`, and its gradient."""
    for parameter in parameters:
        parameter.grad = None
    with torch.enable_grad():
        torch.cat(forward(), -1).square().sum().backward()


def make_denoiser(size: str) -> Denoiser:
    """Random weights everywhere: adaLN-Zero's gates would hide the blocks."""
    width, blocks, heads = SIZES[size]
    denoiser = Denoiser(CHANNELS, width, blocks, heads).eval().requires_grad_(False)
    for parameter in denoiser.parameters():
        parameter += 0.1 * torch.randn(parameter.shape)
    return denoiser


@pytest.mark.parametrize("backend", usable("philox"))
def test_philox_normal(benchmark, backend):
    benchmark(philox.normal, 0, torch.arange(8), stream=1, count=TOKENS * CHANNELS, backend=backend)


@pytest.mark.parametrize("backend", usable("cross_attention"))
@pytest.mark.parametrize("size", SIZES)
def test_cross_attention(benchmark, size, backend):
    width, _, heads = SIZES[size]
    q, k, v = torch.randn(4, TOKENS, width), torch.randn(4, KEYS, width), torch.randn(4, KEYS, width)
    benchmark(cross_attention, q, k, v, num_heads=heads, backend=backend)


@pytest.mark.parametrize("backend", usable("denoiser_block"))
@pytest.mark.parametrize("size", SIZES)
def test_denoiser_block(benchmark, size, backend):
    denoiser = make_denoiser(size)
    width, heads = denoiser.width, denoiser.num_heads
    x, kv = torch.randn(4, TOKENS, width), torch.randn(2, 4, KEYS, width)
    weights = denoiser.blocks[0].weights()
    benchmark(denoiser_block, x, torch.randn(9, width), kv, weights, num_heads=heads, backend=backend)


@pytest.mark.parametrize("backend", usable("denoiser"))
@pytest.mark.parametrize("size", SIZES)
def test_denoiser(benchmark, size, backend):
    denoiser = make_denoiser(size)
    x, cond = torch.randn(4, TOKENS, CHANNELS), torch.randn(4, KEYS, denoiser.width)
    with rohydr_fast.backend(backend):
        benchmark(denoiser, x, torch.tensor([1, 300, 600, 1000]), cond)


@pytest.mark.parametrize("backend", usable("denoiser"))
@pytest.mark.parametrize("size", SIZES)
def test_denoiser_there_and_back(benchmark, size, backend):
    denoiser = make_denoiser(size).requires_grad_()
    x, cond = torch.randn(4, TOKENS, CHANNELS), torch.randn(4, KEYS, denoiser.width, requires_grad=True)
    t = torch.tensor([1, 300, 600, 1000])
    with rohydr_fast.backend(backend):
        benchmark(there_and_back, lambda: denoiser(x, t, cond), [*denoiser.parameters(), cond])


@pytest.mark.parametrize("backend", usable("reverse_loop"))
@pytest.mark.parametrize("size", SIZES)
def test_reverse_loop(benchmark, size, backend):
    denoiser = make_denoiser(size)
    cond = torch.randn(1, KEYS, denoiser.width)
    benchmark(rohydr_fast.sample, denoiser, cond, steps=10, tokens=TOKENS, backend=backend)


@pytest.mark.parametrize("backend", [*usable("reverse_loop"), *["cpp-recomputed"] * ("cpp" in usable("reverse_loop"))])
@pytest.mark.parametrize("size", SIZES)
def test_reverse_loop_there_and_back(benchmark, size, backend):
    denoiser, steps = make_denoiser(size).requires_grad_(), 10
    cond = torch.randn(1, KEYS, denoiser.width, requires_grad=True)
    options = dict(steps=steps, tokens=TOKENS, prediction="x0", backend=backend)
    if backend == "cpp-recomputed":
        options |= dict(backend="cpp", max_memory=4 * steps * TOKENS * CHANNELS)  # bytes of x_t at every step
    leaves = [*denoiser.parameters(), cond]
    benchmark(there_and_back, lambda: [rohydr_fast.sample(denoiser, cond, **options)], leaves)
