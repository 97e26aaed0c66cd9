"""What a call of the sampler asks of the host, for a loop of one launch: few operations, and no wait for the device.

Tensors without numbers stand for those of a device, and a stub for the kernel.
"""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rohydr_fast
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.ops import reverse_loop as loops
from rohydr_fast.ops.conditioning import reference, stacked
from rohydr_fast.ops.reverse_loop import cuda, native


class Operations(TorchDispatchMode):
    """Counts those on tensors of the device; one that asks for a value fails, as these tensors have none."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(tensor.is_meta for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, torch.Tensor)):
            self.counts[str(function)] += 1
        return result


@pytest.fixture
def launches(monkeypatch):
    """The launches of a kernel that does nothing."""
    found = []
    core = SimpleNamespace(
        reverse_loop_cuda=lambda *args: found.append(args), reverse_loop_cuda_scratch=lambda *args: 8
    )
    monkeypatch.setattr(cuda, "_native", SimpleNamespace(load=lambda: core))
    monkeypatch.setattr(loops, "_choose", lambda *args: "cuda")
    monkeypatch.setattr(native, "reverse_loops", lambda chains, *rest: cuda.run(*native._lists(chains)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return found


@pytest.mark.parametrize("dtype, most", [(torch.float32, 36), (torch.bfloat16, 48)], ids=str)
@pytest.mark.parametrize("blocks", [1, 6])
def test_a_call_is_few_operations_for_any_number_of_blocks(launches, blocks, dtype, most):
    denoiser = Denoiser(channels=8, width=32, num_blocks=blocks, num_heads=4).to("meta", dtype).eval()
    cond = torch.empty(3, 7, 32, device="meta", dtype=dtype)

    def call():
        with torch.inference_mode():
            return rohydr_fast.sample(denoiser, cond, steps=5, tokens=6)

    call()  # tables of the schedule, the steps and the positions are kept
    with Operations() as operations:
        x_0 = call()
    assert x_0.shape == (3, 6, 8) and x_0.dtype == dtype and len(launches) == 2
    assert operations.counts.total() <= most, operations.counts


@pytest.mark.parametrize("layers, batch", [(0, 2), (1, 1), (4, 3), (4, 0)])
def test_stacked_layers_give_what_one_after_the_other_gives(layers, batch):
    generator = torch.Generator().manual_seed(layers)

    def make(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    width, rows = 16, 5
    sizes = [width, width, *[9 * width] * layers, *[2 * width] * (layers + 1)]
    weights = [make(size, 32 if i == 0 else width) for i, size in enumerate(sizes)]
    biases, features, encoded = [make(size) for size in sizes], make(rows, 32), make(batch, 7, width)
    inputs = [features, encoded, *weights, *biases]
    answers = []
    for function in (reference.conditioning, stacked.conditioning):
        (blocks, final), cond_kv = function(features, encoded, weights, biases)
        total = sum((part.sin().sum() for part in (blocks, final, cond_kv)), torch.zeros(()))
        gradients = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
        answers.append([blocks, final, cond_kv, *gradients])
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
