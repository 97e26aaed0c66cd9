"""A small model and batch shared by tests."""

import torch

from rohydr_fast.config import ModelConfig

DIMS = {"a": 3, "t": 6, "v": 4}


def small_config(**changes) -> ModelConfig:
    settings = dict(
        dims=DIMS,
        recovery_lengths={"a": 5, "t": 6, "v": 7},
        channels=8,
        width=16,
        blocks=2,
        heads=4,
        chain_steps=3,
        ur_hidden=8,
        ur_blocks=1,
        fusion_heads=4,
        fusion_layers=1,
        d_hidden=8,
    )
    return ModelConfig(**{**settings, **changes})


def open_up(model: torch.nn.Module, std: float = 0.1) -> None:
    """Move every parameter off its initial value: zero gates and zero last layers hide what lies behind them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += std * torch.randn(p.shape, generator=generator)


def small_batch():
    """Four clips: x, lengths, sample ids; padding holds zeros."""
    generator = torch.Generator().manual_seed(2)
    lengths = {"a": torch.tensor([5, 3, 4, 5]), "t": torch.tensor([6, 2, 6, 1]), "v": torch.tensor([7, 7, 5, 3])}
    x = {}
    for m, size in DIMS.items():
        tokens = int(lengths[m].max())
        mask = torch.arange(tokens) < lengths[m][:, None]
        x[m] = torch.randn(4, tokens, size, generator=generator) * mask[..., None]
    return x, lengths, torch.tensor([10, 11, 12, 13])
