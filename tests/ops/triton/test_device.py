"""The Triton kernels on a CUDA device: the rules of the interpreter's tests at usual sizes, and the graph."""

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from rohydr_fast.ops.cross_attention import cross_attention
from rohydr_fast.ops.reverse_loop import first_undefined_steps, reverse_loop
from rohydr_fast.ops.triton.status import HEAD_DIMS
from tests.ops.gradient_cases import chain_of, gradients
from tests.ops.triton.interpreted.rule import attention_problem, block_problem, check, network_problem

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16]


def on_device(arguments: dict) -> dict:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.cuda(), arguments)


def in_type(arguments: dict, dtype: torch.dtype) -> dict:
    return tree_map_only(torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("sizes", [dict(samples=3, tokens=7, keys=5), dict(samples=9, tokens=50, keys=100)], ids=str)
def test_a_block_is_as_near_to_float64_as_pytorch(sizes, head_dim, dtype):
    given = block_problem(head_dim, head_dim, 64 // head_dim, dtype, **sizes)
    check("denoiser_block", given, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [4, 16, 64])
def test_attention_is_as_near_to_float64_as_pytorch(head_dim, dtype):
    given = attention_problem(head_dim, head_dim, 64 // head_dim, dtype, samples=9, tokens=50, keys=100)
    check("cross_attention", given, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_denoiser_is_as_near_to_float64_as_pytorch(dtype):
    check("denoiser", network_problem(2, dtype, samples=7, tokens=47, keys=63), dtype, "cuda")


def test_a_chain_with_gradients_is_as_near_to_float64_as_pytorch():
    check("reverse_loop", network_problem(1, torch.float32, steps=3, samples=3), torch.float32, "cuda")


def test_gradients_have_the_same_bits_every_time():
    given = on_device(block_problem(1, 16, 4, torch.bfloat16, samples=40, tokens=50, keys=100))
    way = torch.randn(40, 50, 64, device="cuda", dtype=torch.bfloat16)
    first, second = (gradients("denoiser_block", given, way, torch.bfloat16, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_recorded_graph_gives_the_numbers_of_the_loop(dtype):
    from rohydr_fast.ops.reverse_loop import graphed

    graphed._recorded.clear()

    def check_replay(given: dict) -> Tensor:
        """Both are no further apart than twice what PyTorch is wrong: one rounds to bfloat16 more often."""
        found = reverse_loop(**given, backend="triton")
        _, looped = graphed.trajectory(chain_of(given))
        exact, pytorch = (reverse_loop(**in_type(given, of), backend="reference") for of in (torch.float64, dtype))
        assert (found - looped).abs().max() <= 2 * (pytorch - exact).abs().max()
        return found

    given = on_device(network_problem(3, dtype, steps=6, samples=5, tokens=50, keys=100))
    found = check_replay(given)
    masks = {name: given[name] for name in ("token_mask", "key_mask")}
    check_replay(on_device(network_problem(4, dtype, steps=4, samples=5, tokens=50, keys=100)) | masks)
    assert torch.equal(reverse_loop(**given, backend="triton"), found) and len(graphed._recorded) == 1


def test_the_graph_on_another_stream_waits_for_the_call_before():
    given = on_device(network_problem(3, torch.float32, steps=6, samples=5))
    expected = reverse_loop(**given, backend="triton")
    other = on_device(network_problem(5, torch.float32, steps=6, samples=5)) | {"key_mask": given["key_mask"]}
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(10):
        results = []
        for stream, call in zip(streams, (given, other), strict=True):
            with torch.cuda.stream(stream):
                results.append(reverse_loop(**call, backend="triton"))
        torch.cuda.synchronize()
        assert torch.equal(results[0], expected)


def test_automatic_choice_takes_triton_on_the_device():
    attention = on_device(attention_problem(3, 16, 4, torch.bfloat16))
    assert torch.equal(cross_attention(**attention), cross_attention(**attention, backend="triton"))
    given = on_device(network_problem(3, torch.float32, steps=2))
    assert torch.equal(reverse_loop(**given), reverse_loop(**given, backend="triton"))
    assert first_undefined_steps([chain_of(given)]) == [None]


def test_the_compiler_makes_the_same_numbers():
    from rohydr_fast.ops.denoiser_block import denoiser_block

    given = on_device(block_problem(1, 16, 4, torch.float32, samples=3, tokens=50, keys=100))
    weights = given.pop("weights")

    def call(x):
        return denoiser_block(**{**given, "x": x}, weights=weights, backend="triton")

    found, expected = torch.compile(call, fullgraph=True)(given["x"]), call(given["x"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
