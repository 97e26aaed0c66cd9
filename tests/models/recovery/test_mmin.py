"""mmin-style: the cascade, and what it learns from."""

import pytest
import torch
from torch import nn

from rohydr_fast.models.recovery.mmin import AUTOENCODERS, Cascade
from tests.models.recovery.learning import build, clips, supervise
from tests.small_model import small_config


class Returns(nn.Module):
    """A cascade that leads back to a fixed answer."""

    def __init__(self, answer: torch.Tensor):
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer


def test_each_autoencoder_reads_the_input_and_all_outputs_before_it():
    cascade, x = Cascade(6, 4), torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    cascade.autoencoders = nn.ModuleList(nn.Identity() for _ in range(AUTOENCODERS))
    # x, then x + x, then x + x + 2 x: each identity doubles the sum.
    torch.testing.assert_close(cascade(x), 2 ** (AUTOENCODERS - 1) * x)


def test_the_loss_is_of_the_sequence_of_the_imagined_vector_and_of_the_way_back():
    recovery, sequences = build("mmin"), clips(small_config())
    recovery.observe(sequences, torch.arange(len(sequences["v"].x)))
    given = supervise(recovery, sequences)
    encoded = given.conditions["v"].encoded
    truth = recovery.norm["v"](sequences["v"].x[:, 0])  # constant over a clip: its mean is any of its tokens
    place = recovery.modalities.index("v") * recovery.channels
    error = (encoded.vectors[:, place : place + recovery.channels] - truth).pow(2).mean()

    def loss(back: torch.Tensor) -> float:
        recovery.back = Returns(back)
        return float(recovery.loss(given).detach())

    # An unroll that has not learned repeats the vector, so that the sequence is as wrong as the vector is.
    assert loss(encoded.given) == pytest.approx(2 * float(error.detach()), rel=1e-4)
    assert loss(encoded.given + 1) - loss(encoded.given) == pytest.approx(1, rel=1e-4)
    # Nobody knows what was missing, so the way back may say anything there.
    assert loss(torch.where(encoded.known, encoded.given, 1e3)) == loss(encoded.given)
