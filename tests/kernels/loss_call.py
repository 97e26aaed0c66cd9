"""A valid call of the core's Eq. 3, whose arguments can be replaced by name."""

import numpy as np
import torch

from tests.ops.inputs import HEADS, loss_inputs

from . import driver

NAMES = (
    *("packed", "x_0", "rows", "loss", "position", "modulation_blocks", "modulation_final", "encoded"),
    *("seed", "sample_ids", "modality", "token_mask", "key_mask", "out", "gradients", "threads"),
)


def loss_call(dtype: torch.dtype = torch.float32) -> dict:
    """The arguments by name; results hold NaN."""
    given = loss_inputs(dtype=dtype)
    condition = [tensor for pair in zip(given["kv_weights"], given["kv_biases"], strict=True) for tensor in pair]
    weights = [driver.array(tensor) for tensor in (*given["weights"].tensors(), *condition)]
    packed = driver.CORE.pack_diffusion_loss(weights, HEADS, dtype == torch.float64)
    names = ("x_0", "rows", "position", "encoded", "token_mask", "key_mask")
    arrays = {name: given[name].numpy() for name in names}
    blocks, final = [table.numpy() for table in given["modulation"]]
    arrays |= dict(modulation_blocks=blocks, modulation_final=final, sample_ids=given["noise"].sample_ids.numpy())
    size = sum(array.size for array in (blocks, final, arrays["encoded"], *weights))
    gradients = np.full(size, np.nan, arrays["x_0"].dtype)
    values = dict(packed=packed, loss="nll", seed=3, modality=1, threads=1, gradients=gradients, **arrays)
    values["out"] = np.full(1, np.nan, arrays["x_0"].dtype)
    return {name: values[name] for name in NAMES}


def run(call: dict, **changes) -> None:
    driver.CORE.diffusion_loss(*{**call, **changes}.values())


def untouched(call: dict) -> bool:
    """Whether no result was written."""
    return np.isnan(call["out"]).all() and np.isnan(call["gradients"]).all()
