"""UR and MR: the residual networks that refine a recovered representation and a fused one."""

from torch import Tensor, nn

from .dropout import Dropout
from .sequences import Sequence, zero_padding


class UnimodalReconstructor(nn.Module):
    """UR of one modality: x + Conv(ResBlocks(Conv(x))) along time (Eq. 4); starts as the identity.

    Args:
        channels: C.
        hidden: channels inside.
        num_blocks: residual blocks, each two convolutions of three steps.
    """

    def __init__(self, channels: int, hidden: int, num_blocks: int):
        super().__init__()
        self.enter = nn.Conv1d(channels, hidden, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv1d(hidden, hidden, 3, padding=1) for _ in range(2)]) for _ in range(num_blocks)
        )
        self.leave = nn.Conv1d(hidden, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, sequence: Sequence) -> Sequence:
        """UR(x~_m^(0)): (B, T, C) to (B, T, C); padding is cleared before every convolution."""
        mask = sequence.mask()

        def convolve(layer: nn.Conv1d, x: Tensor) -> Tensor:
            return zero_padding(layer(x.transpose(1, 2)).transpose(1, 2), mask)

        h = convolve(self.enter, sequence.x)
        for first, second in self.blocks:
            h = h + convolve(second, nn.functional.gelu(convolve(first, nn.functional.gelu(h))))
        return Sequence(sequence.x + convolve(self.leave, h), sequence.lengths)


class MultimodalReconstructor(nn.Module):
    """MR: f + MLP(f), twice, on the fused feature (B, F) (Sec. 2.2.2); starts as the identity."""

    def __init__(self, features: int, dropout: float = 0.0, num_blocks: int = 2):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(features),
                nn.Linear(features, features),
                nn.GELU(),
                Dropout(dropout),
                nn.Linear(features, features),
            )
            for _ in range(num_blocks)
        )
        for block in self.blocks:
            nn.init.zeros_(block[-1].weight)
            nn.init.zeros_(block[-1].bias)

    def forward(self, fused: Tensor) -> Tensor:
        """f~_Mrec = MR(f_Mrec), (B, F)."""
        for block in self.blocks:
            fused = fused + block(fused)
        return fused
