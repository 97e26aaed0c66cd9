"""Arguments of the fused operations, small and random; their sizes are all different."""

import torch

from rohydr_fast.diffusion.process import DiffusionProcess
from rohydr_fast.diffusion.schedule import Schedule
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.ops.reverse_loop import Chain, Modulation, NoiseKey
from tests.small_model import open_up

BATCH, TOKENS, KEYS, CHANNELS, WIDTH, HEADS, LAYERS, STEPS = 3, 5, 7, 6, 16, 4, 2, 4


def make_denoiser(seed: int = 0, dtype: torch.dtype = torch.float32) -> Denoiser:
    """A denoiser whose gates are open, as after training."""
    torch.manual_seed(seed)
    denoiser = Denoiser(CHANNELS, WIDTH, LAYERS, HEADS)
    open_up(denoiser, 0.15)
    return denoiser.to(dtype)


def masks(batch: int, tokens: int, keys: int) -> dict[str, torch.Tensor]:
    """Row i lacks its last i tokens and its first i keys; the last row has no key at all where there is another row."""
    rows = torch.arange(batch)[:, None]
    key_mask = torch.arange(keys) >= rows
    if batch > 1:
        key_mask[-1] = False
    return {"token_mask": torch.arange(tokens) < tokens - rows, "key_mask": key_mask}


def attention_inputs(batch=BATCH, tokens=TOKENS, keys=KEYS, dtype=torch.float32, masked=True) -> dict:
    """Keyword arguments of `cross_attention`."""
    q, k, v = (torch.randn(batch, n, WIDTH, dtype=dtype) for n in (tokens, keys, keys))
    mask = masks(batch, tokens, keys)["key_mask"] if masked else None
    return {"q": q, "k": k, "v": v, "num_heads": HEADS, "key_mask": mask}


def block_inputs(batch=BATCH, tokens=TOKENS, keys=KEYS, dtype=torch.float32, masked=True, rows=False) -> dict:
    """Keyword arguments of `denoiser_block`; `rows` gives each sample a step of its own."""
    return {
        "x": torch.randn(batch, tokens, WIDTH, dtype=dtype),
        "modulation": torch.randn(*((batch,) if rows else ()), 9, WIDTH, dtype=dtype),
        "cond_kv": torch.randn(2, batch, keys, WIDTH, dtype=dtype),
        "weights": make_denoiser(dtype=dtype).requires_grad_(False).blocks[0].weights(),
        "num_heads": HEADS,
        **(masks(batch, tokens, keys) if masked else {}),
    }


@torch.no_grad()
def denoiser_inputs(batch=BATCH, tokens=TOKENS, keys=KEYS, dtype=torch.float32, masked=True, rows=False) -> dict:
    """Keyword arguments of `denoiser`; `rows` gives each sample a step of its own."""
    denoiser = make_denoiser(dtype=dtype).requires_grad_(False)
    steps = torch.arange(1, 1 + (batch if rows else 1))
    modulation = denoiser.conditioning(steps, torch.empty(0, keys, WIDTH, dtype=dtype)).modulation
    return {
        "x": torch.randn(batch, tokens, CHANNELS, dtype=dtype),
        "position": denoiser.position(tokens),
        "modulation": modulation if rows else Modulation(*[part[0] for part in modulation]),
        "cond_kv": torch.randn(LAYERS, 2, batch, keys, WIDTH, dtype=dtype),
        "weights": denoiser.weights(),
        "num_heads": HEADS,
        **(masks(batch, tokens, keys) if masked else {}),
    }


@torch.no_grad()
def make_chain(
    denoiser: Denoiser | None = None,
    batch=BATCH,
    tokens=TOKENS,
    keys=KEYS,
    dtype=torch.float32,
    masked=True,
    seed=2**64 - 3,
    modality=2,
    steps=STEPS,
) -> Chain:
    """The arguments of one `reverse_loop`; the default denoiser wants no gradient."""
    denoiser = make_denoiser(dtype=dtype).requires_grad_(False) if denoiser is None else denoiser
    table = Schedule().table(steps)
    return Chain(
        torch.randn(batch, tokens, CHANNELS, dtype=dtype),
        denoiser.position(tokens),
        *denoiser.conditioning(table.timesteps, torch.randn(batch, keys, WIDTH, dtype=dtype)),
        denoiser.weights(),
        table.coefficients,
        NoiseKey(seed, torch.arange(batch) + 100, modality),
        HEADS,
        **(masks(batch, tokens, keys) if masked else {}),
    )


def loop_inputs(**options) -> dict:
    """Keyword arguments of `reverse_loop`."""
    return make_chain(**options)._asdict()


@torch.no_grad()
def loss_inputs(
    batch=BATCH, tokens=TOKENS, keys=KEYS, dtype=torch.float32, masked=True, rows=True, loss="nll", seed=2**64 - 3
) -> dict:
    """Keyword arguments of `diffusion_loss`; without `rows` one modulation for all."""
    denoiser = make_denoiser(dtype=dtype).requires_grad_(False)
    t = torch.arange(1, 1 + batch) * 300
    layer_weights, layer_biases = denoiser.conditioning_layers()
    x_0 = torch.randn(batch, tokens, CHANNELS, dtype=dtype)
    return {
        "x_0": x_0,
        "rows": DiffusionProcess(Schedule(), "eps").rows(t, x_0),
        "position": denoiser.position(tokens),
        "features": denoiser.time_features(t if rows else t.new_tensor([5]), x_0),
        "encoded": torch.randn(batch, keys, WIDTH, dtype=dtype),
        "layer_weights": layer_weights,
        "layer_biases": layer_biases,
        "weights": denoiser.weights(),
        "noise": NoiseKey(seed, torch.arange(batch) + 100, 2),
        "loss": loss,
        "num_heads": HEADS,
        **(masks(batch, tokens, keys) if masked else {}),
    }


INPUTS = {"denoiser_block": block_inputs, "denoiser": denoiser_inputs, "reverse_loop": loop_inputs}


def wanting(given: dict, name: str) -> torch.Tensor:
    """Lets `given[name]`, or the first of the weights, want a gradient; returns it."""
    if name != "weights":
        given[name] = given[name].clone().requires_grad_()
        return given[name]
    first = given["weights"][0].clone().requires_grad_()
    given["weights"] = given["weights"]._replace(**{given["weights"]._fields[0]: first})
    return first


def loop_arguments(chain: Chain) -> tuple[tuple, dict]:
    """The positional and keyword arguments of `reverse_loop` for a chain."""
    options = {name: getattr(chain, name) for name in ("num_heads", "token_mask", "key_mask", "grad_steps")}
    return tuple(chain)[:7], options


def operation_arguments(*chains: Chain) -> tuple:
    """The arguments of `torch.ops.rohydr_fast.reverse_loops` for chains."""
    weights = [chain.weights.tensors() for chain in chains]
    return (
        [chain.x for chain in chains],
        [chain.position for chain in chains],
        [chain.modulation.blocks for chain in chains],
        [chain.modulation.final for chain in chains],
        [chain.cond_kv for chain in chains],
        [chain.coefficients.to(chain.x.dtype) for chain in chains],
        [chain.noise.sample_ids for chain in chains],
        [chain.token_mask for chain in chains],
        [chain.key_mask for chain in chains],
        [tensor for tensors in weights for tensor in tensors],
        [len(tensors) for tensors in weights],
        [chain.num_heads for chain in chains],
        [chain.noise.seed - 2**64 if chain.noise.seed >= 2**63 else chain.noise.seed for chain in chains],
        [chain.noise.modality for chain in chains],
    )
