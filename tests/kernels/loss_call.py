"""A valid call of the core's Eq. 3 with one term, whose arguments can be replaced by name."""

import numpy as np
import torch

from rohydr_fast.ops.diffusion_loss import LossTerm
from tests.ops.inputs import HEADS, LAYERS, loss_inputs

from . import driver

NAMES = (
    *("packed", "x_0", "rows", "position", "features", "encoded", "layers", "seed", "sample_ids", "modality", "loss"),
    *("token_mask", "key_mask", "out", "gradients"),
)


def loss_term(dtype: torch.dtype = torch.float32) -> dict:
    """The arguments by name; results hold NaN."""
    given = loss_inputs(dtype=dtype)
    parameters = [driver.array(tensor) for tensor in LossTerm(**given).parameters()]
    network, condition = 4 + 12 * LAYERS, len(parameters) - 2 * LAYERS
    weights = [*parameters[:network], *parameters[condition:]]
    packed = driver.CORE.pack_diffusion_loss(weights, HEADS, dtype == torch.float64)
    names = ("x_0", "rows", "position", "features", "encoded", "token_mask", "key_mask")
    arrays = {name: given[name].numpy() for name in names}
    layers = driver.CORE.pack_conditioning(parameters[network::2] + parameters[network + 1 :: 2])
    arrays["sample_ids"] = given["noise"].sample_ids.numpy()
    gradients = np.full(sum(array.size for array in (arrays["encoded"], *parameters)), np.nan, arrays["x_0"].dtype)
    values = dict(packed=packed, layers=layers, loss="nll", seed=3, modality=1, gradients=gradients, **arrays)
    values["out"] = np.full(1, np.nan, arrays["x_0"].dtype)
    return {name: values[name] for name in NAMES}


def run(*terms: dict, threads: int = 1) -> None:
    driver.CORE.diffusion_loss([tuple(term.values()) for term in terms], threads)


def untouched(term: dict) -> bool:
    """Whether no result was written."""
    return np.isnan(term["out"]).all() and np.isnan(term["gradients"]).all()
