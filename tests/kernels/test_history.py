"""The reverse loop of a sampler with a history, forward and back: as near to float64 as PyTorch, the same bits on any
number of threads, and nothing of it where a table has no history."""

import pytest
import torch

from tests.ops.gradient_cases import LEAST_WIDTH, direction
from tests.ops.test_gradients import check as check_gradients

from . import backward, cases, driver
from .test_accuracy import CAPS, FLOOR_ULPS, check, error
from .test_backward_accuracy import Exact

pytestmark = driver.needs_core


def drawn(seed: int, **limits) -> dict:
    return cases.with_history(cases.reverse_loop_case(seed, **limits), seed)


def test_float32_is_as_near_to_float64_as_pytorch(each_isa):
    for seed in range(3_000, 3_120):
        arguments = drawn(seed)
        real = driver.real_tokens(arguments)
        if not real.any():
            continue
        exact = driver.reference("reverse_loop", arguments)
        for isa in each_isa():
            seen = error(driver.native("reverse_loop", arguments, offset=seed % 16), exact, real)
            floor = FLOOR_ULPS * torch.finfo(torch.float32).eps
            check("reverse_loop", seen, floor, arguments, exact, driver.reference)
            assert seen <= CAPS["reverse_loop"], f"{isa} seed {seed}: error {seen:.2e}"


def test_gradients_are_as_near_to_float64_as_pytorchs(each_isa, monkeypatch):
    for seed in range(23_000, 23_030):
        arguments = drawn(seed, largest_width=64)
        if not driver.real_tokens(arguments).any() or arguments["cond_kv"].shape[-1] < LEAST_WIDTH:
            continue
        exact = Exact("reverse_loop", arguments)
        out_gradient = direction("reverse_loop", arguments, torch.nan)
        for turn, _ in enumerate(each_isa()):
            kept = (seed + turn) % 2 == 0
            seen = exact.errors(backward.gradients("reverse_loop", arguments, out_gradient, kept=kept))
            check_gradients("reverse_loop", arguments, exact.values, seen, monkeypatch)


def test_any_number_of_threads_gives_the_same_bits(isa):
    for seed in range(40):
        arguments = drawn(seed)
        alone = driver.native("reverse_loop", arguments)
        for threads in (2, 3, 8):
            assert driver.same_bits(driver.native("reverse_loop", arguments, threads=threads), alone), f"seed {seed}"


def test_a_history_without_weight_changes_no_bit(isa):
    for seed in range(20):
        arguments = cases.reverse_loop_case(seed)
        table = arguments["coefficients"]
        silent = arguments | {"coefficients": torch.cat([table, torch.zeros(len(table), 4)], 1)}
        plain = driver.native("reverse_loop", arguments)
        torch.testing.assert_close(driver.native("reverse_loop", silent), plain, rtol=0, atol=0)


def test_a_variance_of_zero_is_no_noise(isa):
    arguments = cases.with_history(cases.reverse_loop_case(1, samples=2, steps=4), 3)
    first = driver.native("reverse_loop", arguments)
    other = arguments["noise"]._replace(seed=arguments["noise"].seed ^ 1)
    assert driver.same_bits(driver.native("reverse_loop", arguments | {"noise": other}), first)
    noisy = arguments | {"coefficients": arguments["coefficients"].clone()}
    noisy["coefficients"][:, 2:4] = 0
    assert not driver.same_bits(driver.native("reverse_loop", noisy), first)


@pytest.mark.parametrize("columns", [0, 5, 7, 9])
def test_another_number_of_columns_is_refused(columns):
    arguments = cases.reverse_loop_case(1)
    wrong = arguments | {"coefficients": torch.zeros(len(arguments["coefficients"]), columns)}
    with pytest.raises(ValueError, match="coefficients must have shape"):
        driver.native("reverse_loop", wrong)
