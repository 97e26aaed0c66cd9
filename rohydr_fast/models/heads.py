"""D and C: the discriminator and the classifier on fused features."""

import torch
from torch import Tensor, nn

from ..config import OUTPUTS
from ..errors import UsageError
from .dropout import Dropout


class Discriminator(nn.Module):
    """D: a multi-layer perceptron from a fused feature (B, F) to the logit (B,) of being ground truth."""

    def __init__(self, features: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden // 2),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden // 2, 1),
        )

    def forward(self, fused: Tensor) -> Tensor:
        """Logits (B,); I = sigmoid(logit)."""
        return self.layers(fused)[:, 0]


class Classifier(nn.Module):
    """C: a feed-forward network with a residual, from a fused feature (B, F) to one sentiment or to classes.

    With 3, 5 or 7 outputs the classes are the integers around 0 (`losses.class_of`), and the sentiment is their
    expected value.
    """

    def __init__(self, features: int, outputs: int = 1, dropout: float = 0.0):
        super().__init__()
        if outputs not in OUTPUTS:
            raise UsageError(f"classifier: outputs must be one of {OUTPUTS}, got {outputs}. 1 is regression.")
        self.hidden = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(), Dropout(dropout), nn.Linear(features, features)
        )
        self.out = nn.Linear(features, outputs)

    def forward(self, fused: Tensor) -> Tensor:
        """(B, outputs)."""
        return self.out(fused + self.hidden(fused))

    def sentiment(self, output: Tensor) -> Tensor:
        """The prediction (B,) in the label's units."""
        if output.shape[1] == 1:
            return output[:, 0]
        bound = (output.shape[1] - 1) // 2
        values = torch.arange(-bound, bound + 1, device=output.device, dtype=output.dtype)
        return output.softmax(-1) @ values
