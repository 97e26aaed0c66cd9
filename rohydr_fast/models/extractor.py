"""FE: the feature extractor of one modality, a convolution followed by a bidirectional LSTM (Sec. 2.2.1)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..ops.scan import scan
from .dropout import Dropout
from .sequences import Sequence, token_mask, zero_padding


class Extractor(nn.Module):
    """Raw features (B, T, D) to the representation x_m (B, T, C).

    Features are standardised by the training split's mean and deviation, which travel with the weights.
    """

    def __init__(self, features: int, channels: int, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_std", torch.ones(features))
        self.dropout = Dropout(dropout)
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
        x = _stepped(self.lstm, x, lengths) if torch.compiler.is_exporting() else _packed(self.lstm, x, lengths)
        # Under autocast too: recovery, its statistics and its kernels compute in the model's own dtype.
        return Sequence(zero_padding(x.to(self.feature_mean.dtype), mask), lengths)


def _packed(lstm: nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, C) with numbers without meaning after each row's length."""
    # A packed sequence must not be empty: where a sample has no token, one is run and then cleared.
    packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]


def _stepped(lstm: nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    """`_packed` for an exported graph, which can hold neither packed sequences nor, for any T, torch's LSTM.

    It is a scan of the LSTM's cell, and of that of the other direction, which reads each row from its last real token.
    """
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = [[getattr(lstm, name + direction) for name in names] for direction in ("", "_reverse")]

    def step(state: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        forth = torch.lstm_cell(inputs[0], state[:2], *weights[0])
        back = torch.lstm_cell(inputs[1], state[2:], *weights[1])
        return (*forth, *back), (forth[0].clone(), back[0].clone())  # a scan's results must not share memory

    i = torch.arange(x.shape[1], device=x.device)
    mirrored = (lengths[:, None] - 1 - i).clamp(min=0)[..., None]  # (B, T, 1)
    both = (x, x.gather(1, mirrored.expand(-1, -1, x.shape[2])))
    start = tuple([x.new_zeros(x.shape[0], lstm.hidden_size) for _ in range(4)])
    forth, back = scan(step, start, tuple([part.transpose(0, 1) for part in both]))[1]
    back = back.transpose(0, 1).gather(1, mirrored.expand(-1, -1, lstm.hidden_size))
    return torch.cat([forth.transpose(0, 1), back], -1)
