"""FE: the feature extractor of one modality, a convolution followed by a bidirectional LSTM (Sec. 2.2.1)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .sequences import Sequence, token_mask, zero_padding


class Extractor(nn.Module):
    """Raw features (B, T, D) to the representation x_m (B, T, C).

    Features are standardised by the training split's mean and deviation, which travel with the weights.
    """

    def __init__(self, features: int, channels: int, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_std", torch.ones(features))
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv1d(features, channels, kernel_size=3, padding=1)
        self.lstm = nn.LSTM(channels, channels // 2, batch_first=True, bidirectional=True)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Standardise by `mean` and `std`, (D,) each."""
        self.feature_mean.copy_(torch.as_tensor(mean))
        self.feature_std.copy_(torch.as_tensor(std))

    def forward(self, features: Tensor, lengths: Tensor) -> Sequence:
        """(B, T, D) features and (B,) lengths, 0 allowed, to x_m (B, T, C); padding never reaches a real token."""
        tokens = features.shape[1]
        mask = token_mask(lengths, tokens)
        x = zero_padding((features - self.feature_mean) / self.feature_std, mask)
        x = self.conv(self.dropout(x).transpose(1, 2)).transpose(1, 2)  # (B, T, C)
        # A packed sequence must not be empty: where a sample has no token, one is run and then cleared.
        packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=tokens)
        return Sequence(zero_padding(x, mask), lengths)
