"""What processes exchange, over gloo and over nccl: a group of one gives what a process without a group has."""

import pytest
import torch
import torch.distributed
import torch.distributed.nn
from torch import nn

from rohydr_fast.distributed import Processes, Team

from .torchrun import run, steps


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """A device, and a group of this process alone with the backends that a team on it has."""
    backends = "cpu:gloo,cuda:nccl" if request.param == "cuda" else "gloo"
    torch.distributed.init_process_group(backends, store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield request.param
    torch.distributed.destroy_process_group()


def network(device: str) -> nn.Module:
    """Two layers, of which one has a gradient."""
    torch.manual_seed(3)
    layers = nn.ModuleList([nn.Linear(5, 4), nn.Linear(4, 2)]).to(device)
    layers[0](torch.ones(3, 5, device=device)).square().sum().backward()
    return layers


def test_sums_facts_and_objects(device):
    together, alone = Processes(0, 1), Team()
    values = torch.randn(7, 3, device=device)
    assert torch.equal(together.sum(values.clone()), alone.sum(values))
    for fact in (False, True):
        assert together.any(fact) is fact
    assert together.shares([3.0, 0.0]) == [1.0, 0.0] and alone.shares([3.0]) == [1.0]
    told = {"x": values.cpu().tolist(), "y": None}
    assert together.tell(told) == alone.tell(told) and together.gather(told) == alone.gather(told)
    together.barrier()


def test_gradients(device):
    expected, found = network(device), network(device)
    Processes(0, 1).sum_gradients(found.parameters())
    for one, other in zip(expected.parameters(), found.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


@pytest.mark.gpu
def test_two_devices_compute_what_one_does(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} CUDA device: two processes would need two")
    for number, place in ((1, "alone"), (2, "together")):
        settings = ["--data", "synthetic:32/8/8", "--epochs", "1", "--dropout", "0", "--steps", "2"]
        done = run(number, *settings, "--device", "cuda", "--out", str(tmp_path / place))
        assert done.returncode == 0, done.stderr
    logs = [[row for row in steps(tmp_path / place) if row.pop("kind") == "step"] for place in ("alone", "together")]
    assert len(logs[0]) == len(logs[1]) > 0
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
