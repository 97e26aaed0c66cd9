"""Several linear layers in one call."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rohydr_fast import _native
from rohydr_fast.errors import UsageError
from rohydr_fast.ops.linears import linears

pytestmark = pytest.mark.skipif(not _native.status()[0], reason=_native.status()[1])


def layers(rows, depth, columns, count, dtype=torch.float32, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)

    weights = [make(columns, depth) for _ in range(count)]
    return make(rows, depth), weights, [make(columns) for _ in range(count)]


@given(
    rows=st.integers(0, 130),
    depth=st.integers(1, 70),
    columns=st.integers(1, 230),
    count=st.integers(1, 4),
    parts=st.integers(1, 3),
    rows_first=st.booleans(),
    seed=st.integers(0, 999),
)
def test_native_layers_are_as_exact_as_those_of_torch(rows, depth, columns, count, parts, rows_first, seed):
    x, weights, biases = layers(rows, depth, columns * parts, count, seed=seed)
    options = dict(parts=parts, rows_first=rows_first)
    mine = linears(x, weights, biases, **options, backend="cpp")
    plain = linears(x, weights, biases, **options, backend="reference")
    exact = linears(x.double(), [w.double() for w in weights], [b.double() for b in biases], **options)
    assert mine.shape == plain.shape == exact.shape
    assert mine.is_contiguous()
    if mine.numel():
        error, allowed = (mine - exact).abs().max(), (plain - exact).abs().max()
        assert error <= 2 * allowed + 1e-6 * depth**0.5


def test_the_order_of_the_dimensions_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    weights = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])]
    biases = [torch.zeros(2), torch.tensor([10.0, 20.0])]
    for backend in ("cpp", "reference"):
        outputs = linears(x, weights, biases, backend=backend)
        assert outputs.tolist() == [[[1, 3], [2, 4]], [[15, 27], [16, 28]]]
        assert torch.equal(linears(x, weights, biases, rows_first=True, backend=backend), outputs.transpose(0, 1))
        halves = linears(x, weights, biases, parts=2, backend=backend)  # (4, 2, 1): outputs 0 and 1 of each layer
        assert halves[:, :, 0].tolist() == [[1, 2], [3, 4], [15, 16], [27, 28]]


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_bits_do_not_depend_on_the_number_of_threads(threads):
    x, weights, biases = layers(2100, 40, 400, 3)  # more rows and columns than a piece has, enough work for threads
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = linears(x, weights, biases, backend="cpp")
        torch.set_num_threads(threads)
        assert torch.equal(linears(x, weights, biases, backend="cpp"), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows_first", [False, True])
def test_gradients_of_first_and_second_order(rows_first):
    x, weights, biases = layers(4, 3, 6, 2, dtype=torch.float64, requires_grad=True)

    def call(x, *rest):
        return linears(x, rest[:2], rest[2:], parts=3, rows_first=rows_first, backend="cpp")

    assert torch.autograd.gradcheck(call, (x, *weights, *biases))
    assert torch.autograd.gradgradcheck(call, (x, *weights, *biases))


def test_a_frozen_layer_and_a_frozen_input_cost_no_gradient():
    x, weights, biases = layers(4, 3, 6, 2, requires_grad=True)
    weights[0].requires_grad_(False)
    x = x.detach()
    linears(x, weights, biases, backend="cpp").square().sum().backward()
    assert weights[0].grad is None
    assert all(tensor.grad is not None for tensor in (weights[1], *biases))


def test_strided_and_empty_inputs():
    x, weights, biases = layers(6, 10, 4, 2)
    strided = [weight.t().contiguous().t() for weight in weights]
    assert torch.equal(linears(x[::2], strided, biases, backend="cpp"), linears(x, weights, biases)[:, ::2])
    assert linears(x[:0], weights, biases, backend="cpp").shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(x=torch.zeros(2, 3, 4)), r"x must be \(R, D\) of a float dtype"),
        (dict(x=torch.zeros(2, 5)), r"weights\[0\] must have shape \(4, 5\)"),
        (dict(weights=[torch.zeros(4, 3), torch.zeros(5, 3)]), r"weights\[1\] must have shape"),
        (dict(biases=[torch.zeros(4), torch.zeros(4).double()]), r"biases\[1\] must be torch.float32 on cpu"),
        (dict(biases=[torch.zeros(4)]), "biases must be as many as weights"),
        (dict(parts=3), "parts must divide the 4 outputs"),
        (dict(parts=0), "parts must divide the 4 outputs"),
    ],
)
def test_what_does_not_fit_is_named(change, sentence):
    x, weights, biases = layers(2, 3, 4, 2)
    arguments = {**dict(x=x, weights=weights, biases=biases), **change}
    for backend in ("reference", "cpp"):
        with pytest.raises(UsageError, match=f"^linears: {sentence}"):
            linears(**arguments, backend=backend)
