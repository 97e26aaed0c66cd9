"""Neighbours of a problem: its sums in another order, its inputs moved by a few units in the last place.

How far float32 ends from the exact result is partly luck, above all in chains that amplify rounding: the errors of one
order of the sums may happen to cancel. Permuted keys, heads, channels and hidden units leave the mathematics as it is,
and slightly other inputs leave it as hard as it was: both draw the luck again, so that the error of the reference is a
range instead of one number.
"""

import torch
from torch import Tensor

from rohydr_fast.ops.denoiser_block.reference import BlockWeights
from rohydr_fast.ops.reverse_loop.reference import DenoiserWeights, Modulation


class Order:
    """Permutations drawn from one seed."""

    def __init__(self, seed: int, heads: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.heads = heads

    def of(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self.generator)

    def of_heads(self, width: int) -> Tensor:
        """Heads in another order, and the channels inside of each."""
        size = width // self.heads
        return torch.cat([head * size + self.of(size) for head in self.of(self.heads).tolist()])


def reorder_block(weights: BlockWeights, channels: Tensor, order: Order) -> tuple[BlockWeights, Tensor]:
    """The block with permuted channels, heads and hidden units; and the order of the condition's channels."""
    w, width = weights, len(channels)
    own, crossed, hidden = order.of_heads(width), order.of_heads(width), order.of(len(w.fc1_bias))
    qkv = torch.cat([own, width + own, 2 * width + own])
    parts = [
        (w.qkv_weight[qkv][:, channels], w.qkv_bias[qkv]),
        (w.self_out_weight[channels][:, own], w.self_out_bias[channels]),
        (w.q_weight[crossed][:, channels], w.q_bias[crossed]),
        (w.cross_out_weight[channels][:, crossed], w.cross_out_bias[channels]),
        (w.fc1_weight[hidden][:, channels], w.fc1_bias[hidden]),
        (w.fc2_weight[channels][:, hidden], w.fc2_bias[channels]),
    ]
    return BlockWeights(*(t for pair in parts for t in pair)), crossed


def moved(value: Tensor, order: Order) -> Tensor:
    """The same numbers but for their last places, in the type they have."""
    spread = 64 * torch.finfo(torch.float32).eps
    return value * (1 + spread * torch.rand(value.shape, generator=order.generator, dtype=torch.float32) - spread / 2)


def neighbour(operation: str, arguments: dict, seed: int) -> dict:
    """The arguments of another problem that is as hard as this one; channels of the result may be in another order."""
    order, result = Order(seed, arguments["num_heads"]), dict(arguments)
    condition = "k" if operation == "cross_attention" else "cond_kv"
    keys = order.of(arguments[condition].shape[-2])
    if arguments["key_mask"] is not None:
        result["key_mask"] = arguments["key_mask"][:, keys]
    if operation == "cross_attention":
        channels = order.of_heads(arguments["q"].shape[-1])
        result["q"] = moved(arguments["q"][..., channels], order)
        result.update({name: moved(arguments[name][:, keys][..., channels], order) for name in "kv"})
        return result
    weights = arguments["weights"]
    if operation == "denoiser_block":
        channels = order.of(arguments["x"].shape[-1])
        result["weights"], crossed = reorder_block(weights, channels, order)
        result["x"] = moved(arguments["x"][..., channels], order)
        result["modulation"] = arguments["modulation"][..., channels]
        result["cond_kv"] = moved(arguments["cond_kv"][:, :, keys][..., crossed], order)
        return result
    channels = order.of(arguments["position"].shape[-1])
    blocks, crossed = zip(*(reorder_block(block, channels, order) for block in weights.blocks), strict=True)
    ends = weights.in_weight[channels], weights.in_bias[channels], weights.out_weight[:, channels], weights.out_bias
    result["weights"] = DenoiserWeights(*ends[:2], blocks, *ends[2:])
    result["x"] = moved(arguments["x"], order)
    result["position"] = moved(arguments["position"][:, channels], order)
    result["modulation"] = Modulation(*(table[..., channels] for table in arguments["modulation"]))
    pairs = zip(arguments["cond_kv"], crossed, strict=True)
    result["cond_kv"] = moved(torch.stack([layer[:, :, keys][..., heads] for layer, heads in pairs]), order)
    return result
