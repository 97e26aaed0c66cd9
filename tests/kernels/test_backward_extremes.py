"""Gradients where scores are beyond the cheap range of softmax, or numbers are near the ends of float32, or none."""

import pytest
import torch

from tests.ops.gradient_cases import LEAST_WIDTH, direction, gradients
from tests.ops.test_gradients import check, named_errors

from . import backward, cases, driver
from .test_backward_accuracy import Exact
from .test_extremes import NOT_NUMBERS, poisoned, poisonings

pytestmark = driver.needs_core

KINDS = ["nan", "-nan", "nan-319", "inf", "-inf"]


def with_larger_keys(arguments: dict, size: float) -> dict:
    """The problem with scores of its cross-attention that are `size` times as large."""
    keys, values = arguments["cond_kv"].unbind(-4)
    return {**arguments, "cond_kv": torch.stack([keys * size, values], -4)}


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_extreme_scores(operation, size, each_isa, monkeypatch):
    """As near to float64 as PyTorch: where a softmax has one weight of 1, gradients of scores are 0 in both."""
    hits = driver.CORE.softmax_range_hits()
    for seed in range(320, 336):
        arguments = with_larger_keys(cases.CASES[operation](seed, largest_width=48), size)
        if not driver.real_tokens(arguments).any() or arguments["cond_kv"].shape[-1] < LEAST_WIDTH:
            continue
        exact, out_gradient = Exact(operation, arguments), direction(operation, arguments)
        for isa in each_isa():
            found = backward.gradients(operation, arguments, out_gradient, kept=seed % 2 == 0)
            assert all(value.isfinite().all() for value in found.values()), f"{isa} seed {seed}"
            try:
                check(operation, arguments, exact.values, named_errors(found, exact.values), monkeypatch)
            except AssertionError as failure:
                raise AssertionError(f"{isa} seed {seed}: {failure}") from None
    assert driver.CORE.softmax_range_hits() > hits, "no score was extreme: this tested nothing"


@pytest.mark.parametrize("bias", [20.0, 100.0, 1e3, 1e4])
def test_a_largest_score_of_zero(bias, isa):
    """One key is 0 and all the others are far below: the way back must know that their weights were none."""
    draw, width = cases.Drawer(0), 8
    weights = draw.block(width, 16, 0.5)
    weights = weights._replace(q_weight=weights.q_weight / 100, q_bias=torch.full((width,), bias))
    keys = -draw.normal(1, 6, width).abs() - 1
    keys[0, 2] = 0
    arguments = {"x": draw.normal(1, 5, width), "modulation": draw.modulation(rows=9, width=width)}
    arguments |= {"cond_kv": torch.stack([keys, draw.normal(1, 6, width)]), "weights": weights, "num_heads": 1}
    arguments |= {"token_mask": None, "key_mask": None}
    hits = driver.CORE.softmax_range_hits()
    found = backward.gradients("denoiser_block", arguments, direction("denoiser_block", arguments))
    assert driver.CORE.softmax_range_hits() == hits + 5
    Exact("denoiser_block", arguments).errors(found)


@pytest.mark.parametrize("size", [1e3, 1e10, 1e15, 1e18])
def test_gelu_of_large_numbers(size, isa):
    """Hidden units at +-size, which fc2 brings back to 1: slopes are 1 and 0, as PyTorch's are up to 1e19."""
    width, hidden = 4, 40
    weights = cases.Drawer(0).block(width, hidden, 0.1)
    sign = torch.tensor([1.0, -1.0]).repeat(hidden // 2)
    weights = weights._replace(fc1_bias=size * sign, fc2_weight=torch.full((width, hidden), 1 / hidden / size))
    modulation = torch.zeros(9, width)
    modulation[7:] = 1
    arguments = {"x": cases.Drawer(1).normal(1, 3, width), "modulation": modulation}
    arguments |= {"cond_kv": torch.zeros(2, 1, 2, width), "weights": weights, "num_heads": 2}
    arguments |= {"token_mask": None, "key_mask": None}
    out_gradient = direction("denoiser_block", arguments)
    expected = gradients("denoiser_block", arguments, out_gradient, backend="reference")
    found = backward.gradients("denoiser_block", arguments, out_gradient)
    for name, value in expected.items():
        assert value.isfinite().all()
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))


def problems_with(operation: str, arguments: dict, kind: str):
    """Yields the name of an input, the problem with one bad element in it, and the out_gradient."""
    out_gradient, bits = direction(operation, arguments), NOT_NUMBERS[kind]
    for name, problem in poisonings(operation, arguments, bits):
        yield name, problem, out_gradient
    yield "out_gradient", arguments, poisoned(out_gradient, bits, 17)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_what_is_no_number_never_becomes_one(operation, kind, each_isa):
    """No finite gradient where PyTorch has none, and NaN wherever an input is NaN and PyTorch has NaN.

    The other way is allowed: PyTorch's attention gives a query of NaN the weights of no key at all.
    """
    for seed in (361, 364):
        sizes = {"samples": 2, "tokens": 3 + seed % 5, "keys": 2 + seed % 6}
        limits = {"layers": 1, "steps": 2} if operation == "reverse_loop" else {}
        arguments = cases.CASES[operation](seed, largest_width=24, **sizes, **limits)
        arguments |= {"token_mask": None, "key_mask": None}
        for name, problem, out_gradient in problems_with(operation, arguments, kind):
            expected, reached = gradients(operation, problem, out_gradient, backend="reference"), 0
            for isa in each_isa():
                found = backward.gradients(operation, problem, out_gradient, offset=seed % 4, kept=len(isa) % 2 == 0)
                for part, value in found.items():
                    label = f"seed {seed}, {isa}, {kind} in {name}, gradient of {part}"
                    assert not value[~expected[part].isfinite()].isfinite().any(), label
                    assert value[expected[part].isnan()].isnan().all() or kind.endswith("inf"), label
                    reached += not value.isfinite().all()
            assert reached, f"seed {seed}, {kind} in {name} reached no gradient"
