"""F: multimodal fusion by cross-modal transformers, MulT (the paper's [24])."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend, attention_mask
from .dropout import dropout
from .sequences import Sequence, positions


class FusionLayer(nn.Module):
    """Pre-norm attention from one sequence to another, then a feed-forward of four times the width."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)  # norm1 serves queries, keys and values
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """`x` (B, T, W) attends to `source` (B, S, W) as `mask` says, see `attention_mask`."""
        drop = self.dropout if self.training else 0.0
        normal = self.norm1(x)
        q = self.q(normal)
        k, v = self.kv(normal if source is x else self.norm1(source)).chunk(2, -1)
        x = x + dropout(self.out(attend(q, k, v, mask, self.num_heads)), drop)
        hidden = dropout(F.relu(self.fc1(self.norm2(x))), drop)
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

    def forward(self, target: Sequence, source: Sequence | None = None) -> Sequence:
        """Enrich `target` (B, T, W) with `source` (B, S, W), or with itself."""
        x = self._embed(target)
        mask = attention_mask(causal_mask(target, source or target), x, self.num_heads)
        keys = None if source is None else self._embed(source)
        for layer in self.layers:
            x = layer(x, x if keys is None else keys, mask)
        return Sequence(self.norm(x), target.lengths)

    def last_token(self, target: Sequence) -> Tensor:
        """What self-attention gives for the last real token of `target` (B, T, W), (B, W).

        The last layer computes that token alone: it is a query of all tokens, but a key of none that is asked for.
        """
        x, seen = self._embed(target), causal_mask(target, target)
        mask = attention_mask(seen, x, self.num_heads)
        for layer in self.layers[:-1]:
            x = layer(x, x, mask)
        rows, last = torch.arange(x.shape[0], device=x.device), (target.lengths - 1).clamp(min=0)
        mask = attention_mask(seen[rows, last][:, None], x, self.num_heads)
        x = self.layers[-1](x[rows, last][:, None], x, mask)
        return self.norm(x[:, 0])

    def _embed(self, sequence: Sequence) -> Tensor:
        tokens, width = sequence.x.shape[1:]
        x = math.sqrt(width) * sequence.x + positions(tokens, width, sequence.x)
        return dropout(x, self.dropout, self.training)


def causal_mask(target: Sequence, source: Sequence) -> Tensor:
    """MulT's mask, with each sample's own lengths: token i sees source tokens up to i + |len_source - len_target|.

    Returns (B, T, S) bool. Padding is never seen, but for the first key of an empty source: a row without keys
    has no softmax, and what such a row gives is masked out of every loss.
    """
    i = torch.arange(target.x.shape[1], device=target.x.device)[:, None]
    j = torch.arange(source.x.shape[1], device=target.x.device)
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
        last_tokens = []
        for target in self.modalities:
            enriched = [
                self.cross[f"{target}_from_{source}"](sequences[target], sequences[source]).x
                for source in self.modalities
                if source != target
            ]
            together = Sequence(torch.cat(enriched, -1), sequences[target].lengths)
            last_tokens.append(self.memory[target].last_token(together))  # (B, (M - 1) C)
        return torch.cat(last_tokens, -1)
