"""The whole reverse loop on CUDA, run by the simulator: right by the accuracy rule, and the same bits in any order."""

import itertools

import numpy as np
import pytest
import torch

from tests.kernels import cases
from tests.kernels.driver import REFERENCES

from . import reverse_loops
from .simulation import ORDERS, SimulationError

reference = REFERENCES["reverse_loop"]
NETWORKS = [(32, 8), (32, 2), (64, 16), (64, 8), (64, 4), (64, 2), (64, 1), (128, 32), (128, 8), (128, 2)]
"""Widths and heads: 4, 8, 16, 32 and 64 channels of a head."""
SEEDS = range(4)
FLOOR = 2.4e-7
"""Two units in the last place of float32: PyTorch is lucky on some small problems, the more threads add the sums."""
CAPS = {False: 5e-6, True: 0.03}
"""Largest relative error of a problem; seen are 1e-6 and 8e-3."""


def convert(value, dtype: torch.dtype):
    """The floating tensors of a nested tuple, or of keywords, in another dtype."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: convert(part, dtype) for name, part in value.items()}
    if isinstance(value, tuple):
        parts = [convert(part, dtype) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def make(seed: int, network: tuple[int, int], *, bf16: bool = False, **fixed) -> dict:
    """Keywords of the reference in float32, of numbers that bfloat16 has where that is asked for."""
    sizes = {"samples": 2, "layers": 2, "steps": 2} | fixed
    case = cases.reverse_loop_case(seed, network=network, scale=1.0, **sizes)
    return convert(convert(case, torch.bfloat16), torch.float32) if bf16 else case


def real(case: dict) -> torch.Tensor:
    """(B, T): tokens that exist."""
    mask = case["token_mask"]
    return torch.ones(case["x"].shape[:2], dtype=torch.bool) if mask is None else mask


def error(found: torch.Tensor, exact: torch.Tensor, rows: torch.Tensor) -> float:
    """Relative L2 distance over real tokens."""
    assert found[rows].isfinite().all()
    return float((found.double() - exact)[rows].norm() / exact[rows].norm())


def errors(case: dict, found: torch.Tensor, bf16: bool) -> tuple[float, float]:
    """Of the kernel and of PyTorch in the same dtype, against float64."""
    exact, rows = reference(**convert(case, torch.float64)), real(case)
    same = reference(**convert(case, torch.bfloat16)) if bf16 else reference(**case)
    return error(found, exact, rows), error(same, exact, rows)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: "W{}-H{}".format(*network))
def test_the_error_is_at_most_twice_that_of_pytorch(network, bf16):
    seen = []
    for seed in SEEDS:
        case = make(seed, network, bf16=bf16)
        if not real(case).any():
            continue
        found = reverse_loops.run(case, bf16=bf16)[0]
        assert not found[~real(case)].any(), "tokens that do not exist must be zeros"
        seen.append(errors(case, found, bf16))
    assert max(kernel for kernel, _ in seen) <= CAPS[bf16]
    for kernel, pytorch in seen:
        assert kernel <= 2 * pytorch + FLOOR
    assert sum(kernel for kernel, _ in seen) <= 2 * sum(pytorch for _, pytorch in seen), "luck hides no loss"
    assert len(seen) >= 3


SIZES = [
    dict(tokens=96, keys=100, channels=7),
    dict(tokens=33, keys=65, channels=48),
    dict(tokens=16, keys=64, channels=32),
    dict(tokens=1, keys=1, channels=1),
    dict(tokens=50, keys=100, channels=32, layers=1),
    dict(tokens=5, keys=3, channels=9, layers=3, steps=1),
    dict(tokens=5, keys=3, channels=9, layers=0, steps=3),
]


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()))
def test_sizes_at_the_edges_of_tiles(sizes, bf16):
    case = make(11, (64, 4), bf16=bf16, **sizes) | {"token_mask": None, "key_mask": None}
    kernel, pytorch = errors(case, reverse_loops.run(case, bf16=bf16)[0], bf16)
    assert kernel <= min(2 * pytorch + FLOOR, CAPS[bf16])


def test_the_most_tokens():
    case = make(11, (64, 4), bf16=True, tokens=128, keys=30, samples=1) | {"token_mask": None, "key_mask": None}
    kernel, pytorch = errors(case, reverse_loops.run(case, bf16=True)[0], True)
    assert kernel <= min(2 * pytorch, CAPS[True])


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_the_order_of_threads_changes_no_bit(bf16):
    case = make(1, (64, 8), bf16=bf16, tokens=37, keys=70)
    first, *others = [reverse_loops.run(case, bf16=bf16, order=order)[0] for order in ORDERS]
    for other in others:
        assert torch.equal(first, other)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_modalities_in_one_launch_and_samples_alone_have_the_same_bits(bf16):
    several = [make(seed, (64, 4), bf16=bf16, samples=1 + seed, tokens=(40, 7, 90)[seed]) for seed in range(3)]
    together = reverse_loops.run(*several, bf16=bf16)
    for case, found in zip(several, together, strict=True):
        assert torch.equal(found, reverse_loops.run(case, bf16=bf16)[0])
        for sample in range(len(found)):
            alone = reverse_loops.run(cases.take(case, [sample]), bf16=bf16)[0]
            assert torch.equal(found[sample : sample + 1], alone)


@pytest.mark.parametrize("network", [(64, 4), (64, 2), (64, 8)], ids=str)
def test_more_samples_than_multiprocessors_have_the_bits_of_few(network):
    case = make(4, network, bf16=True, samples=133, tokens=20, keys=18, layers=1, channels=5, steps=2)
    together = reverse_loops.run(case, bf16=True)[0]
    for some in ([0, 1], [77], [131, 132]):
        assert torch.equal(together[some], reverse_loops.run(cases.take(case, some), bf16=True)[0])


@pytest.mark.parametrize("network", [(64, 4), (64, 2), (32, 2)], ids=str)
def test_a_device_with_less_shared_memory_gets_the_kernel_that_fits_and_the_same_bits(network, monkeypatch):
    """99 KiB, as devices for desktops have: two warps a tile would take 131 at W = 64."""
    case = make(5, network, bf16=True, samples=2, tokens=50, keys=18, channels=32, layers=1, steps=2)
    width, heads = network
    facts, bytes_of = (50, 32, 4 * width, width, heads, 1), "reverse_loop_shared_bytes"
    usual, most = reverse_loops.run(case, bf16=True)[0], reverse_loops.simulation().value(bytes_of, *facts)
    monkeypatch.setenv("ROHYDR_SIM_SHARED_MEMORY", str(99 * 1024))
    assert reverse_loops.simulation().value(bytes_of, *facts) <= min(most, 99 * 1024)
    assert (most > 99 * 1024) == (width == 64)
    assert torch.equal(reverse_loops.run(case, bf16=True)[0], usual)


@pytest.mark.parametrize("network", [(128, 8), (32, 8)], ids=str)
def test_chains_for_another_kernel_in_one_launch_have_the_same_bits(network):
    several = [make(seed, network, bf16=True, samples=1, tokens=(65, 40, 90)[seed]) for seed in range(3)]
    for case, found in zip(several, reverse_loops.run(*several, bf16=True), strict=True):
        assert torch.equal(found, reverse_loops.run(case, bf16=True)[0])


def test_a_masked_problem_is_the_problem_of_what_exists():
    case = make(5, (64, 4), samples=3, tokens=20, keys=30)
    tokens, keys = torch.arange(20) % 3 != 1, torch.arange(30) % 4 != 0
    case |= {"token_mask": tokens.expand(3, -1).contiguous(), "key_mask": keys.expand(3, -1).contiguous()}
    exact = reference(**convert(case, torch.float64))[:, tokens]
    assert error(reverse_loops.run(case)[0][:, tokens], exact, torch.ones(3, int(tokens.sum()), dtype=bool)) < 5e-6


def test_without_a_key_attention_gives_zero_and_without_a_token_nothing_is_computed():
    case = make(6, (64, 4), samples=3, tokens=9, keys=5)
    key_mask, token_mask = torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 9, dtype=torch.bool)
    key_mask[1], token_mask[2] = False, False
    case |= {"key_mask": key_mask, "token_mask": token_mask}
    found = reverse_loops.run(case)[0]
    kernel, pytorch = errors(case, found, False)
    assert kernel <= 2 * pytorch + FLOOR
    assert not found[2].any()


def test_no_sample_at_all():
    case = make(7, (64, 4), samples=2)
    empty = cases.take(case, [])
    assert reverse_loops.run(empty)[0].shape[0] == 0
    both = reverse_loops.run(empty, case)
    assert torch.equal(both[1], reverse_loops.run(case)[0])


def test_large_scores_keep_softmax_right():
    case = make(8, (64, 4), tokens=20, keys=40)
    case["cond_kv"] = case["cond_kv"] * torch.tensor([300.0, 1.0])[None, :, None, None, None]
    kernel, pytorch = errors(case, reverse_loops.run(case)[0], False)
    assert kernel <= 3 * pytorch + 1e-6


@pytest.mark.parametrize("network", [(64, 8), (64, 4), (64, 2), (64, 1), (128, 8), (128, 2), (32, 2)], ids=str)
@pytest.mark.parametrize("key_scale", [300.0, 1.0], ids=["scores-up-to-hundreds", "usual-scores"])
@pytest.mark.parametrize("shift", [2000.0, -2000.0, 0.0])
def test_scores_far_from_zero_keep_softmax_right_in_bfloat16(network, key_scale, shift):
    """With no maximum taken off, sums would overflow or vanish: all keys get one more score, which changes nothing."""
    case = make(8, network, bf16=True, samples=1, tokens=20, keys=40)
    keys, values = (case["cond_kv"] * torch.tensor([key_scale, 1.0])[None, :, None, None, None]).unbind(1)
    blocks = []
    for block in case["weights"].blocks:  # a query of every head has 1 in its first channel, and every key the shift
        weight, bias = block.q_weight.clone(), block.q_bias.clone()
        weight[:: weight.shape[0] // network[1]], bias[:: weight.shape[0] // network[1]] = 0.0, 1.0
        blocks.append(block._replace(q_weight=weight, q_bias=bias))
    keys[..., :: network[0] // network[1]] = shift
    case |= {"weights": case["weights"]._replace(blocks=tuple(blocks)), "cond_kv": torch.stack([keys, values], 1)}
    case = convert(convert(case, torch.bfloat16), torch.float32)
    kernel, pytorch = errors(case, reverse_loops.run(case, bf16=True)[0], True)
    assert kernel <= 2 * pytorch + CAPS[True] / 10
    if key_scale == 1.0:
        assert kernel <= CAPS[True], "PyTorch rounds such scores to bfloat16, which is no excuse here"


def test_noise_is_that_of_the_reference():
    """With sigma as large as it gets x_0 is mostly noise: other numbers would be far away."""
    case = make(9, (64, 4), tokens=11, channels=10, steps=2)
    case["coefficients"] = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(2, 1)
    silent = case | {"coefficients": torch.tensor([[1.0, 0.0, -80.0, -80.0]]).repeat(2, 1)}
    added = reverse_loops.run(case)[0] - reverse_loops.run(silent)[0]
    wanted = reference(**case) - reference(**silent)
    assert (added - wanted)[real(case)].abs().max() < 1e-5
    assert wanted[real(case)].abs().mean() > 0.1


@pytest.mark.parametrize("network, sizes", [((48, 4), {}), ((64, 4), {"tokens": 97}), ((64, 4), {"channels": 400})])
def test_what_no_kernel_takes_is_refused(network, sizes):
    with pytest.raises(SimulationError, match="refused"):
        reverse_loops.run(make(0, network, **sizes))


def test_inputs_beside_each_other_do_not_leak():
    """NaN in padding and at absent keys reaches no result."""
    case = make(10, (64, 4), tokens=12, keys=12)
    token_mask, key_mask = torch.ones(2, 12, dtype=torch.bool), torch.ones(2, 12, dtype=torch.bool)
    token_mask[:, 7:], key_mask[:, ::3] = False, False
    case |= {"token_mask": token_mask, "key_mask": key_mask}
    clean = reverse_loops.run(case)[0]
    poisoned = dict(case, x=case["x"].clone(), cond_kv=case["cond_kv"].clone())
    poisoned["x"][~token_mask] = np.nan
    for layer, part in itertools.product(range(2), range(2)):
        poisoned["cond_kv"][layer, part][~key_mask] = np.nan
    assert torch.equal(clean, reverse_loops.run(poisoned)[0])
