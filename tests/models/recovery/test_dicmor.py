"""dicmor-style: the flow is invertible, and its log-determinant is that of its Jacobian."""

import torch

from rohydr_fast.models.recovery.dicmor import Flow, resample
from rohydr_fast.models.sequences import Sequence
from tests.small_model import open_up


def flow() -> Flow:
    torch.manual_seed(0)
    built = Flow(6, 16)
    open_up(built, 0.3)
    return built.double()


def test_the_inverse_undoes_the_flow():
    built, x = flow(), 3 * torch.randn(5, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    latent, _ = built(x)
    assert not torch.allclose(latent, x)
    torch.testing.assert_close(built.inverse(latent), x)
    torch.testing.assert_close(built(built.inverse(x))[0], x)


def test_the_log_determinant_is_that_of_the_jacobian():
    built, x = flow(), torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, log_det = built(x)
    for token, found in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda token: built(token)[0], token)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], found)


def test_resampling_keeps_the_order_and_never_reads_padding():
    x = torch.tensor([[1.0, 2, 3, 9], [4, 9, 9, 9]])[..., None]
    found = resample(Sequence(x, torch.tensor([3, 1])), torch.tensor([6, 2]))
    assert found[0, :, 0].tolist() == [1, 1, 2, 2, 3, 3] and found[1, :2, 0].tolist() == [4, 4]
    assert resample(Sequence(x, torch.tensor([3, 1])), torch.tensor([1, 1]))[:, 0, 0].tolist() == [1, 4]
    assert not (found == 9).any()
