"""Several reverse loops as the registered operations take them: a list for each argument."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from .packing import CACHE, as_array, as_optional_array

SCHEMA = (
    "Tensor[] position, Tensor[] modulation_blocks, Tensor[] modulation_final, Tensor[] cond_kv, "
    "Tensor[] coefficients, Tensor[] sample_ids, Tensor?[] token_mask, Tensor?[] key_mask, Tensor[] weights, "
    "int[] weight_counts, int[] num_heads, SymInt[] seeds, int[] modalities"
)

SEED_MASK = 2**64 - 1


class ChainLists(NamedTuple):
    """The arguments of `SCHEMA`, with an entry for each chain; `weights` holds those of all, one after the other."""

    position: list[Tensor]
    modulation_blocks: list[Tensor]
    modulation_final: list[Tensor]
    cond_kv: list[Tensor]
    coefficients: list[Tensor]
    sample_ids: list[Tensor]
    token_mask: list[Tensor | None]
    key_mask: list[Tensor | None]
    weights: list[Tensor]
    weight_counts: list[int]
    num_heads: list[int]
    seeds: list[int]
    modalities: list[int]

    def native(self, i: int, start: Tensor, weights: list[Tensor], steps: int | None = None) -> tuple:
        """What `_C.reverse_loop` and its way back read of chain `i`.

        Args:
            start: x_K, or the x_t of all steps.
            weights: those of the chain.
            steps: the last so many alone; None is all.
        """
        tables = [self.modulation_blocks[i], self.modulation_final[i], self.coefficients[i]]
        if steps is not None:
            tables = [table[:steps] for table in tables]
        blocks, final, coefficients = tables
        return (
            CACHE.get("denoiser", weights, self.num_heads[i], start.dtype == torch.float64),
            as_array(start),
            as_array(self.position[i]),
            as_array(blocks),
            as_array(final),
            as_array(self.cond_kv[i]),
            as_array(coefficients),
            self.seeds[i] & SEED_MASK,
            as_array(self.sample_ids[i]),
            self.modalities[i],
            as_optional_array(self.token_mask[i]),
            as_optional_array(self.key_mask[i]),
        )


TENSOR_FIELDS = ChainLists._fields.index("weight_counts")
"""The first so many fields hold tensors."""


def by_chain(tensors: Sequence, counts: Sequence[int]) -> list[Sequence]:
    """A list over all chains, such as that of the weights, cut into one for each."""
    return [tensors[end - count : end] for end, count in zip(accumulate(counts), counts, strict=True)]
