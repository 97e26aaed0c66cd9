import pytest
import torch

from rohydr_fast.models.rohydr import RoHyDR
from tests.small_model import open_up, small_batch, small_config


@pytest.fixture
def model() -> RoHyDR:
    torch.manual_seed(0)
    built = RoHyDR(small_config())
    open_up(built)
    return built.eval()


@pytest.fixture
def batch():
    return small_batch()
