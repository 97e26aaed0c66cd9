"""The denoiser in plain PyTorch, as a researcher writes it: no checks, no choice of a backend, nothing hoisted."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from rohydr_fast.models.denoiser import TIME_FEATURES, Denoiser
from rohydr_fast.models.sequences import sinusoidal
from rohydr_fast.ops.denoiser_block.reference import denoiser_block, modulate


def plain_network(
    denoiser: Denoiser,
    x: Tensor,
    features: Tensor,
    position: Tensor,
    encoded: Tensor,
    *,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    run: Callable | None = None,
) -> tuple[Tensor, Tensor]:
    """The prediction and v (B, T, C) of Eq. 2, from the parameters to the result, one operation after another.

    Args:
        features: (B, 256) of the steps.
        position: (T, W).
        encoded: (B, S, W).
        token_mask, key_mask: (B, T), (B, S) bool.
        run: calls each block, as a function and its arguments.
    """
    time = F.silu(denoiser.time(features))
    h = denoiser.embed(x) + position
    run = denoiser_block if run is None else partial(run, denoiser_block)
    masks = {"token_mask": token_mask, "key_mask": key_mask}
    for block in denoiser.blocks:
        modulation = block.modulation(time).unflatten(-1, (9, -1))
        kv = block.kv(encoded).chunk(2, -1)
        h = run(h, modulation, kv, block.weights(), num_heads=denoiser.num_heads, **masks)
    shift, scale = denoiser.final_modulation(time).unsqueeze(1).chunk(2, -1)
    prediction, v = denoiser.out(modulate(h, shift, scale)).chunk(2, -1)
    return prediction, v


def features_of(t: Tensor, like: Tensor) -> Tensor:
    """The time features (..., 256) of steps `t`, in the dtype of `like`."""
    return sinusoidal(t, TIME_FEATURES).to(like.dtype)
