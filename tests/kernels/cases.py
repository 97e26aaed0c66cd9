"""Random problems for the kernels: everything is drawn from one seed, sizes mostly small, with a few long ones.

`scale` fixes the size of weights and inputs, which is drawn otherwise; `fixed` fixes sizes by their names.
"""

import numpy as np
import torch
from torch import Tensor

from rohydr_fast.config import PREDICTIONS
from rohydr_fast.diffusion.schedule import Schedule
from rohydr_fast.diffusion.solvers import SILENT
from rohydr_fast.ops.denoiser_block.reference import BlockWeights
from rohydr_fast.ops.reverse_loop.reference import DenoiserWeights, Modulation, NoiseKey

HEAD_SIZES = (1, 2, 3, 4, 5, 8, 12, 16, 24, 32, 64)
MAX_WIDTH = 160
SAMPLE_ID_END = 2**48
SEED_END = 2**64


class Drawer:
    """Draws sizes and tensors from one seed."""

    def __init__(self, seed: int, fixed_scale: float | None = None):
        self.rng = np.random.default_rng(seed)
        self.fixed_scale = fixed_scale

    def size(self, last: int) -> int:
        """1..last, small ones more often: uniform in the logarithm."""
        return int(np.exp(self.rng.uniform(0, np.log(last + 1))))

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def scale(self) -> float:
        """0.1..3, uniform in the logarithm, unless it is fixed."""
        drawn = float(np.exp(self.rng.uniform(np.log(0.1), np.log(3))))
        return self.fixed_scale or drawn

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        return torch.from_numpy((std * self.rng.standard_normal(shape)).astype(np.float32))

    def linear(self, columns: int, depth: int, gain: float) -> tuple[Tensor, Tensor]:
        """Weights that keep the size of their input, times `gain`, and a bias."""
        return self.normal(columns, depth, std=gain / depth**0.5), self.normal(columns, std=0.3 * gain)

    def mask(self, rows: int, columns: int) -> Tensor | None:
        """None, lengths as of a padded batch, or holes anywhere; now and then a row has nothing left."""
        kind = self.rng.choice(["none", "lengths", "holes"])
        if kind == "none":
            return None
        if kind == "lengths":
            least = 0 if self.rng.random() < 0.2 else 1
            lengths = self.rng.integers(min(least, columns), columns + 1, rows)
            return torch.from_numpy(np.arange(columns) < lengths[:, None])
        return torch.from_numpy(self.rng.random((rows, columns)) < self.uniform(0.2, 1))

    def width_and_heads(self, largest: int = MAX_WIDTH) -> tuple[int, int]:
        while True:
            size, heads = int(self.rng.choice(HEAD_SIZES)), int(self.rng.integers(1, 9))
            if size * heads <= largest:
                return size * heads, heads

    def batch(self, fixed: dict) -> tuple[int, int, int]:
        """Samples, tokens and keys, unless they are fixed."""
        drawn = {"samples": int(self.rng.integers(1, 7)), "tokens": self.size(70), "keys": self.size(130)}
        return tuple(fixed.get(name, size) for name, size in drawn.items())

    def block(self, width: int, hidden: int, gain: float) -> BlockWeights:
        shapes = [(3 * width, width), *3 * [(width, width)], (hidden, width), (width, hidden)]
        return BlockWeights(*(t for shape in shapes for t in self.linear(*shape, gain)))

    def modulation(self, *leading: int, rows: int, width: int) -> Tensor:
        """Shift and scale near 0, gates near 1 in size: blocks that matter."""
        return self.normal(*leading, rows, width, std=0.5)


def cross_attention_case(
    seed: int, *, largest_width: int = MAX_WIDTH, scale: float | None = None, **fixed: int
) -> dict:
    """Keywords of `cross_attention`; `fixed` may give samples, tokens, keys."""
    draw = Drawer(seed, scale)
    width, heads = draw.width_and_heads(largest_width)
    samples, tokens, keys = draw.batch(fixed)
    return {
        "q": draw.normal(samples, tokens, width, std=draw.scale()),
        "k": draw.normal(samples, keys, width, std=draw.scale()),
        "v": draw.normal(samples, keys, width, std=draw.scale()),
        "num_heads": heads,
        "key_mask": draw.mask(samples, keys),
    }


def denoiser_block_case(seed: int, *, largest_width: int = MAX_WIDTH, scale: float | None = None, **fixed: int) -> dict:
    """Keywords of `denoiser_block`; `fixed` may give samples, tokens, keys."""
    draw = Drawer(seed, scale)
    width, heads = draw.width_and_heads(largest_width)
    samples, tokens, keys = draw.batch(fixed)
    hidden = max(1, round(width * draw.uniform(0.3, 5)))
    leading = () if draw.rng.random() < 0.5 else (samples,)
    return {
        "x": draw.normal(samples, tokens, width, std=draw.scale()),
        "modulation": draw.modulation(*leading, rows=9, width=width),
        "cond_kv": draw.normal(2, samples, keys, width, std=draw.scale()),
        "weights": draw.block(width, hidden, draw.scale()),
        "num_heads": heads,
        "token_mask": draw.mask(samples, tokens),
        "key_mask": draw.mask(samples, keys),
    }


def reverse_loop_case(
    seed: int,
    *,
    largest_width: int = MAX_WIDTH,
    scale: float | None = None,
    network: tuple[int, int] | None = None,
    **fixed: int,
) -> dict:
    """Keywords of `reverse_loop`; `fixed` may give samples, tokens, keys, channels, layers, steps, and `network` the
    width and the number of heads."""
    draw = Drawer(seed, scale)
    width, heads = network or draw.width_and_heads(largest_width)
    samples, tokens, keys = draw.batch(fixed)
    drawn = {"channels": draw.size(40), "layers": draw.size(4), "steps": draw.size(8)}
    channels, layers, steps = (fixed.get(name, size) for name, size in drawn.items())
    gain = draw.scale()
    hidden = max(1, round(width * draw.uniform(0.3, 5)))
    blocks = tuple(draw.block(width, hidden, gain) for _ in range(layers))
    weights = DenoiserWeights(*draw.linear(width, channels, gain), blocks, *draw.linear(2 * channels, width, gain))
    schedule = Schedule(num_steps=int(draw.rng.integers(steps, 1001)), beta_end=draw.uniform(1e-3, 0.05))
    return {
        "x": draw.normal(samples, tokens, channels, std=draw.scale()),
        "position": draw.normal(tokens, width),
        "modulation": Modulation(
            draw.modulation(steps, layers, rows=9, width=width), draw.modulation(steps, rows=2, width=width)
        ),
        "cond_kv": draw.normal(layers, 2, samples, keys, width, std=draw.scale()),
        "weights": weights,
        "coefficients": schedule.table(steps, str(draw.rng.choice(PREDICTIONS))).coefficients,
        "noise": NoiseKey(
            int(draw.rng.integers(0, SEED_END, dtype=np.uint64)),
            torch.from_numpy(draw.rng.integers(0, SAMPLE_ID_END, samples)),
            int(draw.rng.integers(0, 256)),
        ),
        "num_heads": heads,
        "token_mask": draw.mask(samples, tokens),
        "key_mask": draw.mask(samples, keys),
    }


def denoiser_case(seed: int, *, samples: int | None = None, **fixed) -> dict:
    """Keywords of `denoiser`: a row of modulation for each sample, or one for all where the seed is odd."""
    samples = 1 + seed % 5 if samples is None else samples
    case = reverse_loop_case(seed, samples=samples, steps=samples, **fixed)
    del case["coefficients"], case["noise"]
    if seed % 2:
        case["modulation"] = Modulation(*[table[0] for table in case["modulation"]])
    return case


CASES = {
    "reverse_loop": reverse_loop_case,
    "denoiser": denoiser_case,
    "denoiser_block": denoiser_block_case,
    "cross_attention": cross_attention_case,
}


SAMPLE_AXIS = {"cond_kv": -3, "q": 0, "k": 0, "v": 0, "x": 0, "token_mask": 0, "key_mask": 0}


def take_modulation(modulation: Tensor | Modulation, chosen: Tensor) -> Tensor | Modulation:
    """The rows of these samples, of what has a row for each sample."""
    if isinstance(modulation, Tensor):
        return modulation[chosen] if modulation.dim() == 3 else modulation
    return Modulation(*(part[chosen] for part in modulation)) if modulation.final.dim() == 3 else modulation


def with_history(arguments: dict, seed: int) -> dict:
    """The reverse loop of a sampler with a history, of random coefficients; every third one draws no noise."""
    rng = np.random.default_rng(seed)
    table = arguments["coefficients"].clone()
    if seed % 3 == 0:
        table[:, 2:] = SILENT
    history = torch.from_numpy(rng.uniform(-0.7, 0.7, (len(table), 4)).astype(np.float32))
    return arguments | {"coefficients": torch.cat([table, history], 1)}


def take(arguments: dict, samples: list[int]) -> dict:
    """The same problem for these samples only, in this order."""
    chosen, result = torch.tensor(samples, dtype=torch.int64), dict(arguments)
    for name, axis in SAMPLE_AXIS.items():
        if arguments.get(name) is not None:
            result[name] = arguments[name].index_select(axis, chosen)
    if "noise" in arguments:
        result["noise"] = arguments["noise"]._replace(sample_ids=arguments["noise"].sample_ids[chosen])
    elif "modulation" in arguments:
        result["modulation"] = take_modulation(arguments["modulation"], chosen)
    return result


def compacted(arguments: dict, sample: int) -> tuple[dict, Tensor, Tensor]:
    """One sample cut to its real tokens and keys, and which tokens and keys of the batch these are."""
    one = take(arguments, [sample])
    sizes = (one["q"] if "q" in one else one["x"]).shape[1], (one["k"] if "q" in one else one["cond_kv"]).shape[-2]
    masks = [one.get(name) for name in ("token_mask", "key_mask")]
    tokens, keys = (
        torch.arange(size) if mask is None else mask[0].nonzero()[:, 0] for mask, size in zip(masks, sizes, strict=True)
    )
    if "q" in one:
        return {**one, "k": one["k"][:, keys], "v": one["v"][:, keys], "key_mask": None}, tokens, keys
    cut = {"x": one["x"][:, tokens], "cond_kv": one["cond_kv"][..., keys, :], "token_mask": None, "key_mask": None}
    if "position" in one:
        cut["position"] = one["position"][tokens]
    return {**one, **cut}, tokens, keys
