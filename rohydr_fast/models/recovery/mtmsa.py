"""Recovery by translation of the available modalities into the missing one."""

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from ..sequences import Sequence, positions, zero_padding
from .base import Condition, Sequences
from .conditioned import ConditionedRecovery
from .normalised import PointRecovery


class TranslationRecovery(PointRecovery, ConditionedRecovery):
    """mtmsa-style: a transformer translates the available modalities into the missing one (the idea of MTMSA).

    Kept: a transformer encoder over the available modalities, a decoder for each missing one, trained to give its
    representation. Left out: text as the pivot through which everything is translated, pretrained models of complete
    data that guide the encoder. This is not MTMSA's program.
    """

    divides = True
    term = "L_translation"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        layers = max(1, config.blocks // 2)
        shape = dict(dim_feedforward=round(config.mlp_ratio * config.width), dropout=config.dropout)
        options = dict(activation="gelu", batch_first=True, norm_first=True)
        encoder = nn.TransformerEncoderLayer(config.width, config.heads, **shape, **options)
        self.encoder = nn.TransformerEncoder(encoder, layers, nn.LayerNorm(config.width), enable_nested_tensor=False)
        self.query = nn.ParameterDict({m: nn.Parameter(torch.randn(config.width) * 0.02) for m in config.modalities})
        self.decoder = nn.ModuleDict()
        for m in config.modalities:
            decoder = nn.TransformerDecoderLayer(config.width, config.heads, **shape, **options)
            self.decoder[m] = nn.TransformerDecoder(decoder, layers, nn.LayerNorm(config.width))
        self.out = nn.ModuleDict({m: nn.Linear(config.width, config.channels) for m in config.modalities})

    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """The translation (R, T, C); gradients run through it."""
        return {m: self._translate(m, condition) for m, condition in conditions.items()}

    def _translate(self, m: str, condition: Condition) -> Sequence:
        tokens, key_mask = condition.encoded
        # A row without any key has no softmax: the first, which holds no content, stands for nothing.
        hidden = ~key_mask
        hidden[:, 0] &= key_mask.any(1)
        source = self.encoder(zero_padding(tokens, key_mask), src_key_padding_mask=hidden)
        mask = condition.mask()
        query = self.query[m] + positions(mask.shape[1], len(self.query[m]), tokens)
        target = self.decoder[m](
            query.expand(mask.shape[0], -1, -1), source, tgt_key_padding_mask=~mask, memory_key_padding_mask=hidden
        )
        x = self.norm[m].inverse(self.out[m](target))
        return Sequence(zero_padding(x, mask), condition.lengths)
