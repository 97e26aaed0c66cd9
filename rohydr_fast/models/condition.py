"""E: the condition encoder, which turns the available modalities into the keys and values of cross-attention."""

import torch
from torch import Tensor, nn

from .sequences import Sequence, positions


class ConditionEncoder(nn.Module):
    """Linear(C, W), a modality embedding and a position for each token, concatenated along time.

    It does not depend on the diffusion step, so keys and values of every block are computed once for a whole chain.
    The key mask lets one batch hold samples with different available modalities.
    """

    def __init__(self, modalities: tuple[str, ...], channels: int, width: int):
        super().__init__()
        self.project = nn.ModuleDict({m: nn.Linear(channels, width) for m in modalities})
        self.modality = nn.ParameterDict({m: nn.Parameter(torch.randn(width) * 0.02) for m in modalities})

    def forward(self, sequences: dict[str, Sequence], available: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Encode the modalities of `sequences`; `available` (B,) bool for each says which samples have it.

        Returns:
            E (B, S, W), S the sum of the sequences' T, and the key mask (B, S) bool.
        """
        tokens, masks = [], []
        for m, sequence in sequences.items():
            encoded = self.project[m](sequence.x) + self.modality[m]
            tokens.append(encoded + positions(sequence.x.shape[1], encoded.shape[-1], encoded))
            masks.append(sequence.mask() & available[m][:, None])
        return torch.cat(tokens, 1), torch.cat(masks, 1)
