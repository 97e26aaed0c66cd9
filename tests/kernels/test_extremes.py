"""Scores beyond the cheap range of softmax, numbers near the ends of float32, and numbers that are none."""

import math

import numpy as np
import pytest
import torch

from rohydr_fast.ops.denoiser.reference import Modulation

from . import cases, driver
from .test_accuracy import FLOOR_ULPS, check, error

pytestmark = driver.needs_core

SCORE_LIMIT = 60  # kScoreLimit of csrc/cpu/kernels/attention.h, in units of log2
NOT_NUMBERS = {
    "nan": 0x7FC00000,
    "-nan": 0xFFC00000,  # what x86 makes of 0 * inf
    "nan-1": 0x7FC00001,  # payloads: the low bits of a NaN must not be taken for those of an exponent
    "nan-255": 0x7FC000FF,
    "nan-319": 0xFFC0013F,
    "nan-all": 0x7FFFFFFF,
    "inf": 0x7F800000,
    "-inf": 0xFF800000,
}


def hits_of(call) -> int:
    before = driver.CORE.softmax_range_hits()
    call()
    return driver.CORE.softmax_range_hits() - before


def scaled(operation: str, arguments: dict, size: float) -> dict:
    """The problem with the largest score of its cross-attention near `size`."""
    name = "k" if operation == "cross_attention" else "cond_kv"
    return {**arguments, name: arguments[name] * size}


@pytest.mark.parametrize("operation", cases.CASES)
def test_ordinary_scores_take_the_cheap_path(operation, isa):
    for seed in range(300, 320):
        arguments = cases.CASES[operation](seed, largest_width=64, scale=0.7)
        assert hits_of(lambda a=arguments: driver.native(operation, a)) == 0, f"seed {seed}"


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("operation", cases.CASES)
def test_extreme_scores_are_finite_and_right(operation, size, isa):
    """As near to float64 as PyTorch: with scores of 1e6, float32 itself leaves a tenth of a weight open."""
    hits = 0
    for seed in range(320, 350):
        arguments = scaled(operation, cases.CASES[operation](seed, largest_width=64), size)
        real, exact = driver.real_tokens(arguments), driver.reference(operation, arguments)
        if not real.any():
            continue

        def call(arguments=arguments, exact=exact, real=real):
            seen = error(driver.native(operation, arguments), exact, real)
            floor = FLOOR_ULPS * torch.finfo(torch.float32).eps
            check(operation, seen, floor, arguments, exact, driver.reference)

        hits += hits_of(call)
    assert hits > 0


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6, 1e30])
def test_a_key_far_above_the_others_gives_its_value(size, isa):
    for seed, head_size in enumerate(cases.HEAD_SIZES):
        draw, heads = cases.Drawer(seed), 1 + seed % 3
        samples, tokens, keys, width = 2, 1 + 3 * seed, 5 + seed, heads * head_size
        chosen = torch.from_numpy(draw.rng.integers(0, keys, samples))
        q = draw.normal(samples, tokens, width).abs() + 0.5
        k = -draw.normal(samples, keys, width).abs()
        k[torch.arange(samples), chosen] = 1 + draw.normal(samples, width).abs()
        v = draw.normal(samples, keys, width)
        arguments = {"q": q, "k": k * size * head_size**0.5, "v": v, "num_heads": heads, "key_mask": None}
        result = driver.native("cross_attention", arguments, threads=2)
        expected = v[torch.arange(samples), chosen][:, None].expand_as(result)
        torch.testing.assert_close(result, expected, rtol=3e-7, atol=0)


def test_queries_that_leave_the_cheap_path_are_counted(isa):
    for seed in range(60):
        arguments = cases.cross_attention_case(seed, keys=1 + seed % 30)
        heads, mask = arguments["num_heads"], arguments["key_mask"]
        arguments["q"] = arguments["q"] * 10.0
        q, k = (arguments[name].double().unflatten(-1, (heads, -1)).abs() for name in "qk")
        exists = torch.ones(k.shape[:2], dtype=torch.bool) if mask is None else mask
        largest = k.masked_fill(~exists[..., None, None], 0).amax(1)  # (B, H, D)
        bound = (q * largest[:, None]).sum(-1) * (math.log2(math.e) / q.shape[-1] ** 0.5)
        if ((bound - SCORE_LIMIT).abs() < 1e-3).any():
            continue  # rounding decides
        expected = int((bound > SCORE_LIMIT).sum())
        assert hits_of(lambda a=arguments: driver.native("cross_attention", a, threads=2)) == expected, f"seed {seed}"


@pytest.mark.parametrize("value", [1e-30, 1e-25, 1e-20, 1e-10, 1e10, 3e18, 3e19, 1e21, 3e30])
@pytest.mark.parametrize("sign", [1, -1])
def test_small_and_large_values_beside_large_scores(sign, value, isa):
    """Weights are 2^+-58 here before they are normalised.

    Their products with V stay within float32 up to |V| of 2^67 / S; beyond, the result may be infinite or undefined,
    but not a wrong number. Below 2^-66 products are rounded to multiples of 2^-149, which is 4e-28 in the result.
    """
    draw = cases.Drawer(5)
    q, k = torch.full((1, 4, 4), 5.0), torch.full((1, 6, 4), sign * 4.0)
    arguments = {"q": q, "k": k, "v": draw.normal(1, 6, 4) * value, "num_heads": 1, "key_mask": None}
    exact = driver.reference("cross_attention", arguments)
    result = driver.native("cross_attention", arguments).double()
    finite = result.isfinite()
    assert finite.all() or value > 2**67 / 6
    torch.testing.assert_close(result[finite], exact[finite], rtol=1e-6, atol=1e-6 * value + 6 * 2.0**-149 * 2**58)


@pytest.mark.parametrize("size", [1e3, 1e10, 1e15, 1e25, 3e38])
def test_gelu_of_large_numbers(size, isa):
    """A hidden unit at +-size, which fc2 brings back to 1."""
    width, hidden = 4, 40
    weights = cases.Drawer(0).block(width, hidden, 0.1)
    sign = torch.tensor([1.0, -1.0]).repeat(hidden // 2)
    weights = weights._replace(fc1_bias=size * sign, fc2_weight=torch.full((width, hidden), 1 / hidden / size))
    modulation = torch.zeros(9, width)
    modulation[8] = 1
    arguments = {"x": torch.zeros(1, 3, width), "modulation": modulation, "cond_kv": torch.zeros(2, 1, 2, width)}
    arguments.update(weights=weights, num_heads=2, token_mask=None, key_mask=None)
    expected = driver.reference("denoiser_block", arguments, torch.float32)
    assert expected.isfinite().all()
    torch.testing.assert_close(driver.native("denoiser_block", arguments), expected, rtol=1e-5, atol=1e-5)


def poisoned(tensor: torch.Tensor, bits: int, place: int) -> torch.Tensor:
    """A copy with one element of these bits."""
    numbers = tensor.numpy().copy()
    numbers.reshape(-1).view(np.uint32)[place % numbers.size] = bits
    return torch.from_numpy(numbers)


def poisonings(operation: str, arguments: dict, bits: int):
    """Yields the name of an input and the problem with one bad element in it, for every floating-point input."""
    place = 17
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name != "coefficients":
            yield name, {**arguments, name: poisoned(value, bits, place)}
    modulation = arguments.get("modulation")
    if isinstance(modulation, Modulation):
        for part in modulation._fields:
            changed = modulation._replace(**{part: poisoned(getattr(modulation, part), bits, place)})
            yield f"modulation.{part}", {**arguments, "modulation": changed}
    if "weights" in arguments:
        weights = arguments["weights"]
        block = weights if operation == "denoiser_block" else weights.blocks[-1]
        for part in block._fields:
            changed = block._replace(**{part: poisoned(getattr(block, part), bits, place)})
            whole = changed if block is weights else weights._replace(blocks=(*weights.blocks[:-1], changed))
            yield f"weights.{part}", {**arguments, "weights": whole}


@pytest.mark.parametrize("kind", NOT_NUMBERS)
@pytest.mark.parametrize("operation", cases.CASES)
def test_what_is_no_number_never_becomes_one(operation, kind, each_isa):
    """NaN where PyTorch has NaN, and no finite number where it has none.

    The other way is allowed for infinities, and with them, NaN for infinity: a score of -inf leaves PyTorch with a
    weight of 0, and the kernels with an undefined row.
    """
    for seed in range(360, 366):
        sizes = {"samples": 2, "tokens": 3 + seed % 5, "keys": 2 + seed % 6}
        arguments = cases.CASES[operation](seed, largest_width=24, **sizes)
        arguments.update({name: None for name in ("token_mask", "key_mask") if name in arguments})
        for name, problem in poisonings(operation, arguments, NOT_NUMBERS[kind]):
            expected, exact = driver.reference(operation, problem, torch.float32), driver.reference(operation, problem)
            for isa in each_isa():
                result = driver.native(operation, problem, offset=seed % 4)
                label = f"seed {seed}, {isa}, {kind} in {name}"
                finite = result.isfinite()
                assert result[expected.isnan()].isnan().all() or kind.endswith("inf"), label
                assert expected[finite].isfinite().all(), label
                if not name.startswith(("weights", "position", "modulation")):  # these reach every sample
                    assert finite.flatten(1).all(1).any(), f"{label}: the other sample"
                if finite.any():
                    assert error(result, exact, finite) < 1e-3, label
