"""The rule of accuracy: no further from float64 than PyTorch in the same dtype, times two, or three for gradients."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from rohydr_fast.diffusion.schedule import Schedule
from rohydr_fast.ops.denoiser.reference import DenoiserWeights, Modulation
from rohydr_fast.ops.reverse_loop.reference import NoiseKey
from tests.kernels.cases import Drawer
from tests.kernels.neighbours import Order, moved, neighbour
from tests.ops.gradient_cases import direction, real_tokens, result, with_leaves

NEIGHBOURS = 3
# In units in the last place of the dtype, of the largest exact value: half of one is the rounding of the result itself.
FLOOR = {torch.float32: 4.0, torch.bfloat16: 0.5}
# Of the largest exact value: what no problem here comes near to.
CAP = {torch.float32: 1e-5, torch.bfloat16: 8e-2}
ZERO = 1e-12  # a gradient that is 0, over the largest of all


def block_problem(seed: int, head_dim: int, heads: int, dtype: torch.dtype, **sizes) -> dict:
    """Keywords of `denoiser_block`: numbers that `dtype` holds, odd sizes, masks with holes or none."""
    draw = Drawer(seed, 1.0)
    samples, tokens, keys = (sizes.get(name, size) for name, size in (("samples", 2), ("tokens", 7), ("keys", 5)))
    width = head_dim * heads
    leading = () if seed % 3 == 0 else (samples,)
    return rounded(
        {
            "x": draw.normal(samples, tokens, width),
            "modulation": draw.modulation(*leading, rows=9, width=width),
            "cond_kv": draw.normal(2, samples, keys, width),
            "weights": draw.block(width, 2 * width + 3, 1.0),
            "num_heads": heads,
            "token_mask": draw.mask(samples, tokens),
            "key_mask": draw.mask(samples, keys),
        },
        dtype,
    )


def attention_problem(seed: int, head_dim: int, heads: int, dtype: torch.dtype, **sizes) -> dict:
    """Keywords of `cross_attention`: numbers that `dtype` holds, odd sizes, a mask with holes or none."""
    draw = Drawer(seed, 1.0)
    samples, tokens, keys = (sizes.get(name, size) for name, size in (("samples", 3), ("tokens", 7), ("keys", 5)))
    width = head_dim * heads
    q, k, v = (draw.normal(samples, count, width) for count in (tokens, keys, keys))
    return rounded({"q": q, "k": k, "v": v, "num_heads": heads, "key_mask": draw.mask(samples, keys)}, dtype)


def network_problem(seed: int, dtype: torch.dtype, *, steps: int | None = None, **sizes) -> dict:
    """Keywords of `denoiser`, or with `steps` of `reverse_loop`; W = 16, two heads, two blocks."""
    draw = Drawer(seed, 1.0)
    samples, tokens, keys = (sizes.get(name, size) for name, size in (("samples", 2), ("tokens", 5), ("keys", 7)))
    width, channels, layers, rows = 16, 3, sizes.get("layers", 2), steps or samples
    blocks = tuple(draw.block(width, 19, 0.5) for _ in range(layers))
    case = {
        "x": draw.normal(samples, tokens, channels),
        "position": draw.normal(tokens, width),
        "modulation": Modulation(
            draw.modulation(rows, layers, rows=9, width=width), draw.modulation(rows, rows=2, width=width)
        ),
        "cond_kv": draw.normal(layers, 2, samples, keys, width),
        "weights": DenoiserWeights(*draw.linear(width, channels, 1.0), blocks, *draw.linear(2 * channels, width, 0.5)),
        "num_heads": 2,
        "token_mask": torch.arange(tokens) < tokens - torch.arange(samples)[:, None],
        "key_mask": draw.mask(samples, keys),
    }
    case = rounded(case, dtype)
    if steps:
        case["coefficients"] = Schedule().table(steps).coefficients
        case["noise"] = NoiseKey(2**64 - 3, torch.arange(samples) + 100, 2)
    elif seed % 2:
        case["modulation"] = Modulation(*[table[0] for table in case["modulation"]])
    return case


def rounded(arguments: dict, dtype: torch.dtype) -> dict:
    """The nearest numbers that `dtype` holds."""
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, arguments)


def numbers(operation: str, arguments: dict, way: Tensor, dtype: torch.dtype, device="cpu", **options) -> dict:
    """By name, the result at real tokens, and the gradient of every input for `way`; computed on `device`."""
    there = tree_map_only(Tensor, lambda tensor: tensor.to(device), arguments)
    given, leaves = with_leaves(there, dtype)
    out = result(operation, given, **options)
    found = torch.autograd.grad(out, list(leaves.values()), way.to(device, dtype), allow_unused=True)
    real = out.detach().cpu().masked_fill(~real_tokens(arguments)[..., None], 0)
    return {"result": real, **{name: g.cpu() for name, g in zip(leaves, found, strict=True) if g is not None}}


def check(operation: str, arguments: dict, dtype: torch.dtype, device: str = "cpu", backend: str = "triton") -> None:
    """Asserts the rule for the result and for the gradient of every input, computed by `backend` on `device`.

    The reference's error is the largest of this problem and of its neighbours. The gradient that is asked for is NaN at
    tokens that the mask leaves out.
    """
    way = direction(operation, arguments).to(dtype)
    exact = numbers(operation, arguments, way, torch.float64, backend="reference")
    asked = way.masked_fill(~real_tokens(arguments)[..., None], torch.nan)
    found = numbers(operation, arguments, asked, dtype, device, backend=backend)
    own = errors(numbers(operation, arguments, way, dtype, backend="reference"), exact)
    for seed in range(1, NEIGHBOURS + 1):
        kind = "reverse_loop" if operation == "denoiser" else operation
        other = rounded(neighbour(kind, arguments, seed), dtype)
        near = moved(way.float(), Order(seed, arguments["num_heads"])).to(dtype)
        truth = numbers(operation, other, near, torch.float64, backend="reference")
        again = errors(numbers(operation, other, near, dtype, backend="reference"), truth)
        own = {name: max(error, again[name]) for name, error in own.items()}
    largest = max(float(value.abs().max()) for name, value in exact.items() if name != "result")
    floor = FLOOR[dtype] * torch.finfo(dtype).eps
    assert set(found) == set(exact)
    for name, value in exact.items():
        assert bool(found[name].isfinite().all()), name
        if value.abs().max() <= ZERO * largest:
            assert found[name].abs().max() <= CAP[dtype] * largest, name
            continue
        seen = errors({name: found[name]}, exact)[name]
        assert seen <= (2 if name == "result" else 3) * own[name] + floor, (name, seen, own[name])
        assert seen <= CAP[dtype], (name, seen)


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """The largest distance of each, over its largest exact value."""
    return {
        name: float((found[name].double() - exact[name]).abs().max() / exact[name].abs().max().clamp_min(1e-300))
        for name in found
    }
