"""One block and its way back on CUDA, run by the simulator: right by the accuracy rule, the same bits in any order."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels import cases
from tests.kernels.driver import REFERENCES
from tests.ops.gradient_cases import with_leaves

from . import denoiser_blocks
from .simulation import ORDERS, SimulationError
from .test_reverse_loop import NETWORKS, convert, error, real

reference = REFERENCES["denoiser_block"]
TYPES = pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
CAPS = {False: 3e-6, True: 0.03}
"""Largest relative error; seen are 9e-7 and 8e-3."""
FLOOR = 2.4e-7


def make(seed: int, network: tuple[int, int], *, bf16: bool = False, hidden: int | None = None, **sizes) -> dict:
    """Keywords of the reference in float32, of numbers that bfloat16 has where that is asked for."""
    draw, (width, heads) = cases.Drawer(seed, 1.0), network
    samples, tokens, keys = draw.batch({"samples": 3} | sizes)
    rows = () if seed % 2 else (samples,)
    case = {
        "x": draw.normal(samples, tokens, width),
        "modulation": draw.modulation(*rows, rows=9, width=width),
        "cond_kv": draw.normal(2, samples, keys, width),
        "weights": draw.block(width, hidden or round(width * draw.uniform(0.3, 4)), 1.0),
        "num_heads": heads,
        "token_mask": draw.mask(samples, tokens),
        "key_mask": draw.mask(samples, keys),
    }
    return convert(convert(case, torch.bfloat16), torch.float32) if bf16 else case


def out_gradient_of(case: dict, bf16: bool = False) -> Tensor:
    """Random, and 0 at tokens that do not exist, where nobody looks at it."""
    gradient = torch.from_numpy(np.random.default_rng(1).standard_normal(case["x"].shape).astype(np.float32))
    return convert(convert(gradient, torch.bfloat16 if bf16 else torch.float32), torch.float32) * real(case)[..., None]


def gradients_of_reference(case: dict, out_gradient: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """As `denoiser_blocks.gradients` gives them."""
    given, leaves = with_leaves(case, dtype)
    reference(**given).backward(out_gradient.to(dtype))
    found = [leaf.grad for leaf in leaves.values()]
    named = dict(zip(("x", "modulation", "cond_kv"), found[:3], strict=True))
    return named | {"weights": torch.cat([gradient.ravel() for gradient in found[3:]])}


def most_tokens(network: tuple[int, int], bf16: bool) -> int:
    """Multiples of 32 for which shared memory suffices, whatever the MLP."""
    return 32 if network[0] == 128 and not bf16 else 64


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative L2 distance."""
    assert found.isfinite().all()
    return float((found.double() - exact).norm() / exact.norm())


def check(case: dict, found: dict[str, Tensor], out_gradient: Tensor, bf16: bool) -> list[float]:
    """Every gradient by the rule; zeros where nothing exists. Returns the errors."""
    exact = gradients_of_reference(case, out_gradient, torch.float64)
    same = gradients_of_reference(case, out_gradient, torch.bfloat16 if bf16 else torch.float32)
    rows, mask, seen = real(case), case["key_mask"], []
    assert not found["x"][~rows].any(), "padding must have no gradient"
    assert mask is None or not found["cond_kv"][:, ~mask].any(), "absent keys must have no gradient"
    exact["x"], same["x"], found = exact["x"][rows], same["x"][rows], found | {"x": found["x"][rows]}
    for name, gradient in exact.items():
        if not gradient.any():
            assert not found[name].any(), name
            continue
        kernel, pytorch = distance(found[name], gradient), distance(same[name], gradient)
        assert kernel <= min(3 * pytorch + FLOOR, CAPS[bf16]), (name, kernel, pytorch)
        seen.append(kernel)
    assert len(seen) >= 3
    return seen


@TYPES
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: "W{}-H{}".format(*network))
def test_the_forward_is_at_most_twice_as_wrong_as_pytorch(network, bf16):
    case = make(2, network, bf16=bf16, tokens=most_tokens(network, bf16) - 3, keys=70)
    found, exact = denoiser_blocks.run(case, bf16=bf16), reference(**convert(case, torch.float64))
    same = reference(**convert(case, torch.bfloat16 if bf16 else torch.float32))
    rows = real(case)
    assert not found[~rows].any()
    assert error(found, exact, rows) <= min(2 * error(same, exact, rows) + FLOOR, CAPS[bf16])


@TYPES
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: "W{}-H{}".format(*network))
def test_gradients_are_at_most_three_times_as_wrong_as_those_of_pytorch(network, bf16):
    problems = 0
    for seed, (tokens, keys) in enumerate([(5, 3), (23, 70), (most_tokens(network, bf16) - 1, 33), (8, 16)]):
        case = make(seed, network, bf16=bf16, tokens=tokens, keys=keys)
        if real(case).any():
            gradient = out_gradient_of(case, bf16)
            check(case, denoiser_blocks.gradients(case, gradient, bf16=bf16), gradient, bf16)
            problems += 1
    assert problems >= 3


SIZES = [
    dict(tokens=64, keys=100, hidden=256, samples=9),
    dict(tokens=33, keys=65, hidden=16),
    dict(tokens=16, keys=64, hidden=100),
    dict(tokens=17, keys=1, hidden=64),
    dict(tokens=1, keys=130, hidden=70),
]


@TYPES
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()))
def test_sizes_at_the_edges_of_tiles(sizes, bf16):
    case = make(12, (64, 4), bf16=bf16, **sizes) | {"token_mask": None, "key_mask": None}
    gradient = out_gradient_of(case, bf16)
    check(case, denoiser_blocks.gradients(case, gradient, bf16=bf16), gradient, bf16)


def test_the_most_tokens():
    case = make(4, (64, 4), bf16=True, tokens=128, keys=20, samples=1) | {"token_mask": None, "key_mask": None}
    gradient = out_gradient_of(case, True)
    check(case, denoiser_blocks.gradients(case, gradient, bf16=True), gradient, True)


@TYPES
def test_the_order_of_threads_changes_no_bit(bf16):
    case = make(1, (64, 8), bf16=bf16, tokens=37, keys=50)
    gradient = out_gradient_of(case, bf16)
    first, *others = [denoiser_blocks.gradients(case, gradient, bf16=bf16, order=order) for order in ORDERS]
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    forward, *others = [denoiser_blocks.run(case, bf16=bf16, order=order) for order in ORDERS]
    assert all(torch.equal(forward, other) for other in others)


def test_without_a_key_and_without_a_token():
    case = make(6, (64, 4), samples=3, tokens=9, keys=5)
    key_mask, token_mask = torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 9, dtype=torch.bool)
    key_mask[1], token_mask[2] = False, False
    case |= {"key_mask": key_mask, "token_mask": token_mask}
    gradient = out_gradient_of(case)
    found = denoiser_blocks.gradients(case, gradient)
    check(case, found, gradient, False)
    assert not found["modulation"][2].any()


def test_what_stands_in_padding_and_at_absent_keys_reaches_no_gradient():
    case = make(8, (64, 4), samples=2, tokens=12, keys=12)
    token_mask, key_mask = torch.ones(2, 12, dtype=torch.bool), torch.ones(2, 12, dtype=torch.bool)
    token_mask[:, 7:], key_mask[:, ::3] = False, False
    case |= {"token_mask": token_mask, "key_mask": key_mask}
    gradient = out_gradient_of(case)
    clean = denoiser_blocks.gradients(case, gradient)
    poisoned = dict(case, x=case["x"].clone(), cond_kv=case["cond_kv"].clone())
    poisoned["x"][~token_mask], gradient[~token_mask] = np.nan, np.nan
    poisoned["cond_kv"][:, ~key_mask] = np.nan
    found = denoiser_blocks.gradients(poisoned, gradient)
    assert all(torch.equal(clean[name], found[name]) for name in clean)


@pytest.mark.parametrize("network, tokens", [((48, 4), 5), ((64, 32), 5), ((64, 4), 129)])
def test_what_no_kernel_takes_is_refused(network, tokens):
    with pytest.raises(SimulationError, match="refused"):
        denoiser_blocks.run(make(0, network, tokens=tokens))
