"""F: multimodal fusion by cross-modal transformers, MulT (the paper's [24])."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import attend, attention_mask
from .dropout import dropout, relu_dropout
from .ragged import Layout, Tokens, tokens_of
from .sequences import Sequence, token_mask


class Reading(NamedTuple):
    """Which keys the queries of a stack read."""

    queries: Layout
    keys: Layout
    mask: Tensor  # of `attention_mask`


class FusionLayer(nn.Module):
    """Pre-norm attention from one sequence to another, then a feed-forward of four times the width."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)  # norm1 serves queries, keys and values
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, source: Tensor, reading: Reading) -> Tensor:
        """Tokens `x` (R, W) attend to those of `source` (R', W)."""
        drop = self.dropout if self.training else 0.0
        normal = self.norm1(x)
        q = reading.queries.padded(self.q(normal))
        kv = reading.keys.padded(self.kv(normal if source is x else self.norm1(source)))
        attended = reading.queries.rows(attend(q, *kv.chunk(2, -1), reading.mask, self.num_heads))
        x = x + dropout(self.out(attended), drop)
        hidden = relu_dropout(self.fc1(self.norm2(x)), drop)
        return x + dropout(self.fc2(hidden), drop)


class FusionStack(nn.Module):
    """A stack of layers that all read the same source; with itself as the source it is a self-attention stack.

    At least one layer.
    """

    def __init__(self, width: int, num_heads: int, num_layers: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(width, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.num_heads, self.dropout = num_heads, dropout

    def forward(self, target: Tokens, source: Tokens | None = None) -> Tensor:
        """Enrich `target` (R, W) with `source` (R', W), or with itself: (R, W)."""
        x = self._embed(target)
        keys = None if source is None else self._embed(source)
        reading = self._reading(x, target.layout, (source or target).layout)
        for layer in self.layers:
            x = layer(x, x if keys is None else keys, reading)
        return self.norm(x)

    def last_token(self, target: Tokens) -> Tensor:
        """What self-attention gives for the last real token of each clip of `target` (R, W), (B, W).

        The last layer computes that token alone: it reads all real ones, and none that is asked for reads it.
        """
        x, layout = self._embed(target), target.layout
        reading = self._reading(x, layout, layout)
        for layer in self.layers[:-1]:
            x = layer(x, x, reading)
        real = token_mask(layout.lengths.clamp(min=1), layout.tokens)[:, None]
        alone = Layout(torch.ones_like(layout.lengths), 1, None)
        reading = Reading(alone, layout, attention_mask(real, x, self.num_heads))
        return self.norm(self.layers[-1](x.index_select(0, layout.last()), x, reading))

    def _embed(self, tokens: Tokens) -> Tensor:
        x, layout = tokens
        width = x.shape[1]
        return dropout(math.sqrt(width) * x + layout.positions(width, x), self.dropout, self.training)

    def _reading(self, x: Tensor, queries: Layout, keys: Layout) -> Reading:
        return Reading(queries, keys, attention_mask(causal_mask(queries, keys), x, self.num_heads))


def causal_mask(target: Layout, source: Layout) -> Tensor:
    """MulT's mask, with each sample's own lengths: token i sees source tokens up to i + |len_source - len_target|.

    Returns (B, T, S) bool. Padding is never seen, but for the first key of an empty source: a row without keys
    has no softmax, and what such a row gives is masked out of every loss.
    """
    i = torch.arange(target.tokens, device=target.lengths.device)[:, None]
    j = torch.arange(source.tokens, device=target.lengths.device)
    reach = (source.lengths - target.lengths).abs()[:, None, None]
    return (j <= i + reach) & (j < source.lengths.clamp(min=1)[:, None, None])


class Fusion(nn.Module):
    """Every ordered pair of modalities through a cross-modal stack, every modality's results through a memory
    stack, and the last real token of each: X_M to f_M (B, F), F = M (M - 1) C.

    With three modalities these are MulT's six cross-modal and three memory stacks.
    """

    def __init__(
        self, modalities: tuple[str, ...], channels: int, num_heads: int, num_layers: int, dropout: float = 0.0
    ):
        super().__init__()
        self.modalities = modalities
        partners = len(modalities) - 1
        self.features = len(modalities) * partners * channels
        self.cross = nn.ModuleDict(
            {
                f"{target}_from_{source}": FusionStack(channels, num_heads, num_layers, dropout)
                for target in modalities
                for source in modalities
                if source != target
            }
        )
        self.memory = nn.ModuleDict(
            {m: FusionStack(partners * channels, num_heads, num_layers, dropout) for m in modalities}
        )

    def forward(self, sequences: dict[str, Sequence]) -> Tensor:
        """f_M = F(X_M), (B, F)."""
        tokens = {m: tokens_of(sequence) for m, sequence in sequences.items()}
        last_tokens = []
        for target in self.modalities:
            enriched = [
                self.cross[f"{target}_from_{source}"](tokens[target], tokens[source])
                for source in self.modalities
                if source != target
            ]
            together = Tokens(torch.cat(enriched, -1), tokens[target].layout)
            last_tokens.append(self.memory[target].last_token(together))  # (B, (M - 1) C)
        return torch.cat(last_tokens, -1)
