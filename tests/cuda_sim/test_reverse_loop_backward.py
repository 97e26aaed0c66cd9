"""The way back through the reverse loop on CUDA, run by the simulator: right by the accuracy rule, and the same bits in
any order."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels import cases
from tests.ops.gradient_cases import with_leaves

from . import reverse_loops
from .simulation import ORDERS, SimulationError
from .test_denoiser_block import CAPS, FLOOR, distance, most_tokens, out_gradient_of
from .test_reverse_loop import NETWORKS, make, real, reference

TYPES = pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])


def gradients_of_reference(case: dict, out_gradient: Tensor, dtype: torch.dtype, steps: int) -> dict[str, Tensor]:
    """As `reverse_loops.gradients` gives them; that of x only where it runs through all steps."""
    given, leaves = with_leaves(case, dtype)
    reference(**given, grad_steps=steps).backward(out_gradient.to(dtype))
    x, blocks, final, cond_kv, *weights = [
        torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves.values()
    ]
    found = {"blocks": blocks[:steps], "final": final[:steps], "cond_kv": cond_kv}
    found["weights"] = torch.cat([gradient.ravel() for gradient in weights])
    return found | ({"x": x} if steps == len(case["coefficients"]) else {})


def run(case: dict, out_gradient: Tensor, steps: int, *, bf16: bool = False, order: str = "forward") -> dict:
    """From the x_t that the forward keeps."""
    _, states = reverse_loops.run_with_states(case, steps, bf16=bf16)
    return reverse_loops.gradients(case, out_gradient, states, bf16=bf16, order=order)


def check(case: dict, bf16: bool, steps: int | None = None) -> None:
    """Every gradient by the rule; zeros where nothing exists."""
    steps = steps or len(case["coefficients"])
    gradient, rows, mask = out_gradient_of(case, bf16), real(case), case["key_mask"]
    exact = gradients_of_reference(case, gradient, torch.float64, steps)
    same = gradients_of_reference(case, gradient, torch.bfloat16 if bf16 else torch.float32, steps)
    found = run(case, gradient, steps, bf16=bf16)
    assert not found["x"][~rows].any(), "padding must have no gradient"
    assert mask is None or not found["cond_kv"][:, :, ~mask].any(), "absent keys must have no gradient"
    seen = 0
    for name, wanted in exact.items():
        places = rows if name == "x" else slice(None)
        value, wanted, pytorch = found[name][places], wanted[places], same[name][places]
        if not wanted.any():
            assert not value.any(), name
            continue
        kernel, pytorch = distance(value, wanted), distance(pytorch, wanted)
        assert kernel <= min(3 * pytorch + FLOOR, CAPS[bf16]), (name, kernel, pytorch)
        seen += 1
    assert seen >= 3


@TYPES
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: "W{}-H{}".format(*network))
def test_gradients_are_at_most_three_times_as_wrong_as_those_of_pytorch(network, bf16):
    problems = 0
    for seed, (tokens, keys, steps) in enumerate([(7, 20, 2), (most_tokens(network, bf16) - 3, 9, 1), (20, 33, 3)]):
        case = make(20 + seed, network, bf16=bf16, tokens=tokens, keys=keys, steps=steps)
        if real(case).any():
            check(case, bf16)
            problems += 1
    assert problems >= 2


@TYPES
@pytest.mark.parametrize("steps", [1, 2])
def test_the_last_steps_alone(steps, bf16):
    check(make(31, (64, 4), bf16=bf16, tokens=21, keys=20, steps=3), bf16, steps)


SIZES = [
    dict(tokens=64, keys=100, channels=32, layers=1, steps=2, samples=5),
    dict(tokens=33, keys=65, channels=48, layers=1),
    dict(tokens=16, keys=64, channels=1),
    dict(tokens=1, keys=1, channels=9),
    dict(tokens=5, keys=3, channels=9, layers=0, steps=3),
]


@TYPES
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()))
def test_sizes_at_the_edges_of_tiles(sizes, bf16):
    case = make(11, (64, 4), bf16=bf16, **sizes) | {"token_mask": None, "key_mask": None}
    gradient = out_gradient_of(case, bf16)
    if sizes.get("layers") == 0:  # only x, the last layer's modulation and weights have a gradient
        steps = len(case["coefficients"])
        exact = gradients_of_reference(case, gradient, torch.float64, steps)
        found = run(case, gradient, steps, bf16=bf16)
        assert found["cond_kv"].numel() == found["blocks"].numel() == 0
        for name in ("x", "final", "weights"):
            assert distance(found[name], exact[name]) <= CAPS[bf16]
    else:
        check(case, bf16)


@TYPES
def test_the_order_of_threads_changes_no_bit(bf16):
    case = make(1, (64, 8), bf16=bf16, tokens=37, keys=50)
    gradient = out_gradient_of(case, bf16)
    first, *others = [run(case, gradient, 2, bf16=bf16, order=order) for order in ORDERS]
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_more_samples_than_a_group_and_each_alone_have_the_same_bits():
    """What belongs to a sample does not depend on the others; what is summed over all has their groups' sums."""
    case = make(3, (32, 8), samples=266, tokens=2, keys=2, channels=3, layers=1, steps=2)
    case |= {"token_mask": None, "key_mask": None}
    gradient = out_gradient_of(case)
    found = run(case, gradient, 2)
    exact = gradients_of_reference(case, gradient, torch.float64, 2)
    assert all(distance(found[name], exact[name]) <= CAPS[False] for name in exact)
    for sample in (0, 100, 265):
        alone = run(cases.take(case, [sample]), gradient[[sample]], 2)
        assert torch.equal(alone["x"][0], found["x"][sample])
        assert torch.equal(alone["cond_kv"][:, :, 0], found["cond_kv"][:, :, sample])


def test_without_a_key_and_without_a_token():
    case = make(6, (64, 4), samples=3, tokens=9, keys=5)
    key_mask, token_mask = torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 9, dtype=torch.bool)
    key_mask[1], token_mask[2] = False, False
    check(case | {"key_mask": key_mask, "token_mask": token_mask}, False)


def test_what_stands_in_padding_and_at_absent_keys_reaches_no_gradient():
    case = make(10, (64, 4), tokens=12, keys=12)
    token_mask, key_mask = torch.ones(2, 12, dtype=torch.bool), torch.ones(2, 12, dtype=torch.bool)
    token_mask[:, 7:], key_mask[:, ::3] = False, False
    case |= {"token_mask": token_mask, "key_mask": key_mask}
    gradient = out_gradient_of(case)
    _, states = reverse_loops.run_with_states(case, 2)
    assert np.isnan(states[:, ~token_mask.numpy()]).all(), "x_t of tokens that do not exist is not written"
    clean = reverse_loops.gradients(case, gradient, np.nan_to_num(states))
    gradient[~token_mask] = np.nan
    cond_kv = case["cond_kv"].clone()
    cond_kv[:, :, ~key_mask] = np.nan
    found = reverse_loops.gradients(case | {"cond_kv": cond_kv}, gradient, states)
    assert all(torch.equal(clean[name], found[name]) for name in clean)


def test_states_are_those_of_the_reference():
    case = make(12, (64, 4), tokens=9, keys=7, steps=3) | {"token_mask": None}
    wanted: list[Tensor] = []
    reference(**case, states=wanted)
    out, states = reverse_loops.run_with_states(case, 2)
    torch.testing.assert_close(torch.from_numpy(states), torch.stack(wanted[:0:-1]), rtol=1e-5, atol=1e-5)
    assert torch.equal(out, reverse_loops.run(case)[0])


@pytest.mark.parametrize("network, sizes", [((48, 4), {}), ((64, 4), {"tokens": 129}), ((64, 4), {"channels": 400})])
def test_what_no_kernel_takes_is_refused(network, sizes):
    case = make(0, network, **sizes)
    with pytest.raises(SimulationError, match="refused"):
        reverse_loops.gradients(case, case["x"], np.zeros((1, *case["x"].shape), np.float32))
