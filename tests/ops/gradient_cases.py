"""Random problems of the operations that have a gradient, and the gradient of every input that has one."""

import math
from collections.abc import Iterator
from itertools import count, islice

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_map_with_path

from rohydr_fast.ops.cross_attention import cross_attention
from rohydr_fast.ops.denoiser import Modulation, denoiser
from rohydr_fast.ops.denoiser_block import denoiser_block
from rohydr_fast.ops.reverse_loop import Chain, reverse_loop
from tests.kernels.cases import denoiser_block_case, reverse_loop_case

CONSTANT = ("['position']", "['coefficients']")
FUNCTIONS = {"denoiser_block": denoiser_block, "denoiser": denoiser, "reverse_loop": reverse_loop}
"""Those whose gradient the native core has too."""
_ALL = {"cross_attention": cross_attention, **FUNCTIONS}
LEAST_WIDTH = 4


def denoiser_case(seed: int, **fixed) -> dict:
    """Keywords of `denoiser`: a row of modulation for each sample, or one for all where the seed is odd."""
    samples = fixed.pop("samples", 1 + seed % 5)
    case = reverse_loop_case(seed, samples=samples, steps=samples, **fixed)
    del case["coefficients"], case["noise"]
    if seed % 2:
        case["modulation"] = Modulation(*[table[0] for table in case["modulation"]])
    return case


CASES = {"denoiser_block": denoiser_block_case, "denoiser": denoiser_case, "reverse_loop": reverse_loop_case}


def problems(operation: str, number: int, **fixed) -> Iterator[dict]:
    """So many problems, each with a real token.

    Not with fewer than four channels: LayerNorm makes constants of one or two, and the little that is left of their
    gradient is amplified by 1 / sqrt(1e-6), rounding and all.
    """
    drawn = (CASES[operation](seed, **fixed) for seed in count())
    return islice((p for p in drawn if real_tokens(p).any() and p["cond_kv"].shape[-1] >= LEAST_WIDTH), number)


def with_leaves(arguments: dict, dtype: torch.dtype) -> tuple[dict, dict[str, Tensor]]:
    """The arguments in `dtype`, and by name those that have a gradient, which want it."""
    leaves = {}

    def convert(path, value):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        value, name = value.detach().to(dtype, copy=True), keystr(path)
        if not name.startswith(CONSTANT):
            leaves[name] = value.requires_grad_()
        return value

    return tree_map_with_path(convert, arguments), leaves


def result(operation: str, arguments: dict, **options) -> Tensor:
    """What the public function gives; the two results of a denoiser side by side."""
    out = _ALL[operation](**arguments, **options)
    return torch.cat(out, -1) if operation == "denoiser" else out


def real_tokens(arguments: dict) -> Tensor:
    """(B, T) bool: where the result counts."""
    mask = arguments.get("token_mask")
    return torch.ones(_tokens(arguments).shape[:2], dtype=torch.bool) if mask is None else mask


def _tokens(arguments: dict) -> Tensor:
    """(B, T, n): what the result has the tokens of."""
    return arguments["q" if "q" in arguments else "x"]


def direction(operation: str, arguments: dict, padding: float = 0.0) -> Tensor:
    """Random numbers in the shape of the result, `padding` at tokens that do not count."""
    *tokens, channels = _tokens(arguments).shape
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(*tokens, channels * (2 if operation == "denoiser" else 1), generator=generator)
    return out.masked_fill(~real_tokens(arguments)[..., None], padding)


def gradients(operation: str, arguments: dict, out_gradient: Tensor, dtype=torch.float32, **options) -> dict:
    """By name, the gradient of every input for that of the result; None of an input without."""
    given, leaves = with_leaves(arguments, dtype)
    out = result(operation, given, **options)
    found = torch.autograd.grad(out, list(leaves.values()), out_gradient.to(dtype), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


class _Fused(torch.autograd.Function):
    """Attention in the order of fused kernels: 2^s / sum 2^s, and on the way back dV' - sum_d dO O for each weight.

    PyTorch's order may leave nothing to round, as where one key has all the weight; this one does not.
    """

    @staticmethod
    def forward(ctx, q, k, v, mask):
        scores = (q * (q.shape[-1] ** -0.5 / math.log(2)) @ k.mT).masked_fill(~mask, -torch.inf)
        largest = scores.amax(-1, keepdim=True)
        weights = torch.exp2(scores - largest.where(largest.abs() > 60, 0))
        norm = 1 / weights.sum(-1, keepdim=True)
        out = (weights @ v) * norm
        ctx.save_for_backward(q, k, v, weights * norm, out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        q, k, v, p, out = ctx.saved_tensors
        slopes = p * (gradient @ v.mT - (gradient * out).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        return slopes @ k, slopes.mT @ q, p.mT @ gradient, None


def fused_attention(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, key_mask: Tensor | None = None) -> Tensor:
    """The reference of `cross_attention` in another order, see `_Fused`."""
    key_mask = torch.ones(k.shape[:2], dtype=torch.bool) if key_mask is None else key_mask
    has_key = key_mask.any(-1)[:, None]
    heads = [x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v)]
    out = _Fused.apply(*heads, (key_mask | ~has_key)[:, None, None])
    return out.transpose(1, 2).flatten(2) * has_key[:, :, None]


def chain_of(arguments: dict, **options) -> Chain:
    """The chain whose `reverse_loop` has these keywords."""
    return Chain(**arguments, **options)
