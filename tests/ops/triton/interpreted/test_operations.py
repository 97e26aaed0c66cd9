"""The registered operations in the interpreter, and the functions that kernels compute with."""

import pytest
import torch
import triton
import triton.language as tl

from rohydr_fast.errors import BackendUnavailable
from rohydr_fast.ops.denoiser_block import denoiser_block
from rohydr_fast.ops.registry import explain, select
from rohydr_fast.ops.triton import operations  # noqa: F401  registers them
from rohydr_fast.ops.triton.device import INTERPRETED, gelu, gelu_slope, narrow, product
from tests.ops.gradient_cases import with_leaves

from .rule import attention_problem, block_problem

pytestmark = pytest.mark.usefixtures("one_thread")
OPS = torch.ops.rohydr_fast


def block_arguments(dtype=torch.float32) -> list:
    """Of `triton_block`, with every input wanting a gradient."""
    given, _ = with_leaves(block_problem(2, 8, 1, dtype, tokens=3, keys=2), dtype)
    masks = (torch.ones(2, 3, dtype=torch.bool), torch.tensor([[True, False], [True, True]]))
    return [given["x"], given["modulation"], given["cond_kv"], list(given["weights"]), 1, *masks, True]


def attention_arguments() -> list:
    given, _ = with_leaves(attention_problem(2, 8, 2, torch.float32, tokens=3, keys=2), torch.float32)
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    return [given["q"], given["k"], given["v"], 2, mask]


def embedding_arguments() -> list:
    return [torch.randn(*shape, requires_grad=True) for shape in ((2, 3, 5), (16, 5), (16,), (3, 16))]


def head_arguments() -> list:
    return [torch.randn(*shape, requires_grad=True) for shape in ((2, 3, 16), (1, 2, 16), (6, 16), (6,))]


CALLS = {
    "triton_block": block_arguments,
    "triton_attention": attention_arguments,
    "triton_embedding": embedding_arguments,
    "triton_head": head_arguments,
}


@pytest.mark.parametrize("op", CALLS)
def test_opcheck(op):
    torch.library.opcheck(getattr(OPS, op).default, tuple(CALLS[op]()))


@pytest.mark.parametrize("op", CALLS)
def test_how_inputs_lie_in_memory_changes_no_bit(op):
    def flipped(value):
        if isinstance(value, list):
            return [flipped(part) for part in value]
        return value.detach().flip(-1).contiguous().flip(-1) if isinstance(value, torch.Tensor) else value

    def spread(value):
        if isinstance(value, list):
            return [spread(part) for part in value]
        if not isinstance(value, torch.Tensor):
            return value
        wide = value.detach().new_empty((*value.shape, 3))
        wide[..., 1] = value.detach()
        return wide[..., 1]

    arguments = CALLS[op]()
    with torch.no_grad():
        first, other = getattr(OPS, op)(*flipped(arguments)), getattr(OPS, op)(*spread(arguments))
    pairs = zip(first, other, strict=True) if isinstance(first, list | tuple) else [(first, other)]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_gradient_is_differentiable_once():
    x = torch.randn(1, 2, 16, requires_grad=True)
    given = block_problem(2, 8, 2, torch.float32, samples=1, tokens=2) | {"x": x, "token_mask": None}
    (of_x,) = torch.autograd.grad(denoiser_block(**given, backend="triton").sum(), x, create_graph=True)
    with pytest.raises(BackendUnavailable, match="denoiser_block: its gradient on backend 'triton' must not be diff"):
        of_x.sum().backward()


def test_a_direct_call_that_keeps_nothing_refuses_a_gradient():
    *arguments, _ = block_arguments()
    with pytest.raises(BackendUnavailable, match="triton_block: keep must be True"):
        OPS.triton_block(*arguments, False)[0].sum().backward()


def test_the_compiler_traces_the_call_and_its_gradients():
    given, leaves = with_leaves(block_problem(2, 8, 1, torch.float32, tokens=3, keys=2), torch.float32)

    def loss():
        return denoiser_block(**given, backend="triton").square().sum()

    expected = torch.autograd.grad(loss(), list(leaves.values()))
    run = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(run(), list(leaves.values())), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_on_the_cpu_it_runs_only_by_name():
    assert INTERPRETED.value
    for op in ("cross_attention", "denoiser_block", "denoiser", "diffusion_loss", "reverse_loop"):
        assert select(op) != "triton" and select(op, device="cpu", dtype="bfloat16") == "reference"
        assert select(op, "triton", device="cpu", dtype="bfloat16", needs_grad=True) == "triton"
        (row,) = (row for row in explain(op) if row[0] == "triton")
        assert row[1] and "interprets its kernels on the CPU, for tests" in row[2]
    with pytest.raises(BackendUnavailable, match="TRITON_INTERPRET=1 makes Triton interpret its kernels"):
        select("denoiser", "triton", device="cuda")


@triton.jit
def narrowing_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(out_ptr + place, narrow(tl.load(x_ptr + place), out_ptr.dtype.element_ty))


@triton.jit
def product_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    sum = tl.zeros([SIZE, SIZE], tl.float32)
    tl.store(out_ptr + place, product(tl.load(a_ptr + place), tl.load(b_ptr + place), sum, "ieee"))


@triton.jit
def gelu_kernel(x_ptr, out_ptr, slope_ptr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    x = tl.load(x_ptr + place)
    tl.store(out_ptr + place, gelu(x))
    tl.store(slope_ptr + place, gelu_slope(x))


def test_narrowing_rounds_to_the_nearest_and_to_even():
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0.0, 3e38, 2.0**-130])  # ties, and the extremes
    x = torch.cat([torch.randn(1018) * 10, halfway])
    out = torch.empty(1024, dtype=torch.bfloat16)
    narrowing_kernel[(1,)](x, out, SIZE=1024)
    assert torch.equal(out, x.to(torch.bfloat16))


def test_products_of_bfloat16_are_sums_in_float32():
    a, b = (torch.randn(32, 32).to(torch.bfloat16) for _ in range(2))
    out = torch.empty(32, 32)
    product_kernel[(1,)](a, b, out, SIZE=32)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of numpy; an infinity is what is meant there
def test_gelu_and_its_slope():
    x = torch.linspace(-12, 12, 1024)
    out, slope = torch.empty(1024), torch.empty(1024)
    gelu_kernel[(1,)](x, out, slope, SIZE=1024)
    exact = x.double().requires_grad_()
    value = torch.nn.functional.gelu(exact, approximate="tanh")
    (exact_slope,) = torch.autograd.grad(value.sum(), exact)
    torch.testing.assert_close(out.double(), value.detach(), rtol=2e-6, atol=1e-9)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=2e-6, atol=1e-7)
