"""Gradients by the native core: as near to the exact ones as PyTorch's, and the same bits however they are computed."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rohydr_fast.diffusion.schedule import Schedule
from rohydr_fast.ops.denoiser_block import reference as denoiser_block_reference
from rohydr_fast.ops.reverse_loop import DenoiserWeights, Modulation, NoiseKey
from tests.kernels.cases import Drawer
from tests.kernels.driver import ISAS
from tests.kernels.neighbours import Order, moved, neighbour
from tests.native_spy import needs_core
from tests.ops.gradient_cases import (
    FUNCTIONS,
    direction,
    fused_attention,
    gradients,
    problems,
    real_tokens,
    result,
    with_leaves,
)

pytestmark = [needs_core, pytest.mark.usefixtures("one_thread")]

RANDOM = {
    "denoiser_block": ("denoiser_block", 60, {}),
    "denoiser": ("denoiser", 50, {}),
    "reverse_loop-K1": ("reverse_loop", 20, dict(steps=1)),
    "reverse_loop-K2": ("reverse_loop", 20, dict(steps=2)),
    "reverse_loop-K7": ("reverse_loop", 16, dict(steps=7, largest_width=64)),
    "reverse_loop-K50": ("reverse_loop", 6, dict(steps=50, tokens=6, keys=7, largest_width=24)),
}
NEIGHBOURS = 16
ULP = torch.finfo(torch.float32).eps
# In units in the last place of the largest exact value. More where a query has one key alone: its weight is 1 in
# PyTorch, and its score has no gradient; in the core it is the product of a number and of its reciprocal, and what that
# lacks goes on with the size of keys and values.
FLOOR, FLOOR_OF_ONE_KEY = 4 * ULP, 32 * ULP
# Of the largest entry of the same input, and of its norm: three times what is seen in ten times as many problems. The
# same for float64, times the ratio of the units in the last place.
CAPS = {"denoiser_block": 2e-4, "denoiser": 5e-4, "reverse_loop": 3e-3}
FLOAT64 = torch.finfo(torch.float64).eps / ULP
# The largest entry of a gradient that is 0, such as that of the queries to a single key, over that of any gradient.
ZERO, ZERO_CAP = 1e-12, 2e-6


def error(found: Tensor, exact: Tensor) -> float:
    """The largest distance, relative to the largest exact value."""
    return float((found - exact).abs().max() / exact.abs().max())


def named_errors(found: dict, exact: dict) -> dict[str, float]:
    return {name: error(found[name], value) for name, value in exact.items()}


def exact_gradients(operation: str, arguments: dict, out_gradient: Tensor) -> dict[str, Tensor]:
    return gradients(operation, arguments, out_gradient, torch.float64, backend="reference")


def has_one_key(arguments: dict) -> bool:
    """Whether a sample attends to one token or one key alone."""
    keys = arguments["key_mask"]
    keys = torch.ones(1, arguments["cond_kv"].shape[-2]) if keys is None else keys
    return any(bool((exists.sum(1) == 1).any()) for exists in (real_tokens(arguments), keys))


def check(operation: str, arguments: dict, exact: dict, seen: dict[str, float], monkeypatch) -> dict[str, float]:
    """Asserts the accuracy rule of each input; returns the errors of the reference itself.

    Where the reference was lucky it is asked about neighbouring problems, see `tests.kernels.neighbours`, and takes the
    sums of attention in the order of fused kernels.
    """
    out_gradient = direction(operation, arguments)
    own = named_errors(gradients(operation, arguments, out_gradient, backend="reference"), exact)
    most, asked, floor = dict(own), 1, FLOOR_OF_ONE_KEY if has_one_key(arguments) else FLOOR
    while late := [name for name in seen if seen[name] > 3 * most[name] + floor]:
        assert asked < NEIGHBOURS, {name: (seen[name], most[name]) for name in late}
        other = neighbour("denoiser_block" if operation == "denoiser_block" else "reverse_loop", arguments, asked)
        near = moved(out_gradient, Order(asked, arguments["num_heads"]))
        exact = exact_gradients(operation, other, near)
        with monkeypatch.context() as patch:
            patch.setattr(denoiser_block_reference, "cross_attention", fused_attention)
            errors = named_errors(gradients(operation, other, near, backend="reference"), exact)
        most, asked = {name: max(most[name], errors[name]) for name in most}, asked + 1
    return own


@pytest.mark.parametrize("case", RANDOM)
def test_every_gradient_is_as_near_to_float64_as_pytorchs(case, monkeypatch):
    """What is asked at tokens that the mask leaves out is NaN: nobody may look at it."""
    operation, number, sizes = RANDOM[case]
    cap, ratios = CAPS[operation], []
    for i, arguments in enumerate(problems(operation, number, **sizes)):
        exact = exact_gradients(operation, arguments, direction(operation, arguments))
        out_gradient = direction(operation, arguments, torch.nan)
        largest = max(float(value.abs().max()) for value in exact.values())
        zeros = {name for name, value in exact.items() if value.abs().max() <= ZERO * largest}
        exact = {name: value for name, value in exact.items() if name not in zeros}
        for isa in ISAS:
            monkeypatch.setenv("ROHYDR_FAST_CPU", isa)
            found = gradients(operation, arguments, out_gradient, backend="cpp")
            assert all(found[name].abs().max() <= ZERO_CAP * largest for name in zeros), (i, isa)
            seen = named_errors(found, exact)
            own = check(operation, arguments, exact, seen, monkeypatch)
            for name, value in exact.items():
                distance = (found[name] - value).norm() / value.norm()
                cosine = torch.cosine_similarity(found[name].double().flatten(), value.flatten(), dim=0)
                assert max(seen[name], distance) <= cap and cosine >= 1 - cap**2, (i, isa, name, seen[name], distance)
            ratios += [(seen[name] + ULP) / (own[name] + ULP) for name in seen]
        double = gradients(operation, arguments, out_gradient, torch.float64, backend="cpp")
        errors = named_errors(double, exact)
        assert max(errors.values()) <= FLOAT64 * cap, (i, errors)
    assert np.exp(np.mean(np.log(ratios))) < 1.3, "on the whole further from the exact gradients than PyTorch"


def tiny(operation: str) -> dict:
    """A problem small enough for finite differences, with padding and absent keys; W = 4, H = 2."""
    draw = Drawer(0)
    masks = torch.tensor([[True, True, False], [True] * 3]), torch.tensor([[True] * 3, [False, True, True]])
    shared = dict(num_heads=2, token_mask=masks[0], key_mask=masks[1])
    block = draw.block(4, 6, 1.0)
    if operation == "denoiser_block":
        modulation, cond_kv = draw.modulation(2, rows=9, width=4), draw.normal(2, 2, 3, 4)
        return dict(x=draw.normal(2, 3, 4), modulation=modulation, cond_kv=cond_kv, weights=block, **shared)
    case = dict(
        x=draw.normal(2, 3, 2),
        position=draw.normal(3, 4),
        modulation=Modulation(draw.modulation(2, 1, rows=9, width=4), draw.modulation(2, rows=2, width=4)),
        cond_kv=draw.normal(1, 2, 2, 3, 4),
        weights=DenoiserWeights(*draw.linear(4, 2, 1.0), (block,), *draw.linear(4, 4, 1.0)),
        **shared,
    )
    if operation == "reverse_loop":  # of two steps, where the denoiser has two samples
        case |= dict(coefficients=Schedule().table(2).coefficients, noise=NoiseKey(1, torch.tensor([3, 4]), 0))
    return case


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("operation", FUNCTIONS)
def test_gradcheck(operation, backend):
    given, leaves = with_leaves(tiny(operation), torch.float64)

    def function(*values):
        replaced = dict(zip(map(id, leaves.values()), values, strict=True))
        arguments = torch.utils._pytree.tree_map(lambda value: replaced.get(id(value), value), given)
        return result(operation, arguments, backend=backend)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
