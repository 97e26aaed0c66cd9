"""Dropout whose numbers are drawn in bulk: as often as it says, unbiased, and from torch's generator."""

import pytest
import torch
import torch.nn.functional as F

from rohydr_fast.models.dropout import Dropout, dropout, relu_dropout

SIZE = 200_003  # no multiple of four


def share_kept(p: float) -> float:
    return float((dropout(torch.ones(SIZE), p) != 0).double().mean())


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_what_is_kept_is_as_much_as_asked_and_scaled_so_that_the_mean_stays(p):
    torch.manual_seed(3)
    kept, deviation = share_kept(p), (p * (1 - p) / SIZE) ** 0.5
    assert abs(kept - (1 - p)) < 5 * deviation
    values = dropout(torch.ones(SIZE), p).unique()
    assert values.tolist() == pytest.approx([0, 1 / (1 - p)], rel=2e-4)
    scaled = 65536 / (65536 - round(p * 65536))
    assert values[1].item() == pytest.approx(scaled, rel=1e-7)  # by what p was rounded to


def test_elements_are_dropped_independently():
    """Also those of one number of 64 bits: each of 16 patterns of neighbours is as frequent as chance has it."""
    torch.manual_seed(4)
    kept = (dropout(torch.ones(4 * 50_000), 0.5) != 0).view(-1, 4).long()
    for shift in range(4):
        patterns = (kept.flatten().roll(shift).view(-1, 4) * torch.tensor([1, 2, 4, 8])).sum(1).bincount(minlength=16)
        statistic = float(((patterns - 3125.0) ** 2 / 3125).sum())  # chi squared of 15 degrees of freedom
        assert statistic < 45, shift


def test_the_gradient_is_dropped_and_scaled_as_the_value_was():
    torch.manual_seed(5)
    x = torch.randn(7, 5, 3, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.3)
    gradient = torch.autograd.grad(y.sum(), x)[0]
    torch.testing.assert_close(y.detach(), x.detach() * gradient)
    assert set(gradient.unique().tolist()) == {0.0, 65536 / (65536 - 19661)}


def test_the_seed_of_torch_is_its_seed():
    torch.manual_seed(6)
    state = torch.get_rng_state()
    first, second = dropout(torch.ones(101), 0.5), dropout(torch.ones(101), 0.5)
    torch.set_rng_state(state)
    assert torch.equal(dropout(torch.ones(101), 0.5), first) and not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (2, 3, 5), (4, 4)], ids=str)
def test_any_shape_and_dtype(shape, dtype):
    x = torch.ones(shape, dtype=dtype).requires_grad_()
    y = dropout(x, 0.5)
    assert y.shape == x.shape and y.dtype == dtype and y.requires_grad
    assert ((y == 0) | (y == 2)).all()


def test_where_nothing_is_dropped_it_is_the_tensor_itself_and_draws_nothing():
    x, state = torch.randn(9), torch.get_rng_state()
    assert dropout(x, 0.0) is x and dropout(x, 0.5, training=False) is x
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_of_everything_dropped_zeros_are_left():
    assert not dropout(torch.randn(9), 1.0).any()
    assert not dropout(torch.randn(9), 0.999999).any()


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_after_relu_it_is_both_with_their_gradient(p, training):
    results = []
    for function in (lambda x: relu_dropout(x, p, training), lambda x: dropout(F.relu(x), p, training)):
        torch.manual_seed(9)
        x = torch.randn(37, 5, dtype=torch.float64, requires_grad=True)
        direction = torch.randn(37, 5, dtype=torch.float64)
        y = function(x)
        results.append((y.detach(), *torch.autograd.grad((y * direction).sum(), x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_transforms_of_torch_func_take_torchs_own():
    x = torch.randn(64)
    torch.manual_seed(10)
    found = torch.func.grad(lambda x: relu_dropout(x, 0.5).sum())(x)
    torch.manual_seed(10)
    leaf = x.clone().requires_grad_()
    assert torch.equal(found, torch.autograd.grad(F.dropout(F.relu(leaf), 0.5).sum(), leaf)[0])


def test_after_relu_nothing_but_the_result_is_kept():
    kept = []
    x = torch.randn(8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.data_ptr()), t)[1], lambda t: t):
        y = relu_dropout(x, 0.5)
    assert kept == [y.data_ptr()]


def test_the_module_is_one_of_torchs_kind():
    layer = Dropout(0.25)
    assert isinstance(layer, torch.nn.Dropout) and "p=0.25" in repr(layer)
    torch.manual_seed(7)
    first = layer(torch.ones(50))
    torch.manual_seed(7)
    assert torch.equal(first, dropout(torch.ones(50), 0.25))


def test_compiled_it_is_torchs_own():
    compiled = torch.compile(lambda x: dropout(x, 0.5), fullgraph=True, backend="aot_eager")
    torch.manual_seed(8)
    found = compiled(torch.ones(64))
    torch.manual_seed(8)
    assert torch.equal(found, F.dropout(torch.ones(64), 0.5))
