"""Chains under `torch.autocast`: a CUDA device gets bfloat16 operands and gives float32; others take no notice."""

import pytest
import torch

from rohydr_fast.diffusion import sampler
from rohydr_fast.diffusion.sampler import SampleRequest, chain_of, in_bfloat16, sample_many
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.ops.reverse_loop import reverse_loops

STEPS, CHANNELS, WIDTH = 4, 6, 32


def problem(device: str) -> tuple[Denoiser, torch.Tensor]:
    torch.manual_seed(2)
    model = Denoiser(channels=CHANNELS, width=WIDTH, num_blocks=2, num_heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.08)
    return model.to(device), torch.randn(3, 9, WIDTH).to(device)


def drawn(model: Denoiser, cond: torch.Tensor, low: torch.dtype | None = None, **options) -> list[torch.Tensor]:
    """x_0 under autocast to `low`, and the gradients of all parameters and of the condition."""
    cond = cond.clone().requires_grad_()
    with torch.autocast(cond.device.type, low, enabled=low is not None):
        x_0 = sample_many([SampleRequest(model, cond, steps=STEPS, seed=5, tokens=7, prediction="v")], **options)[0]
    return [x_0.detach(), *torch.autograd.grad(x_0.square().sum(), [cond, *model.parameters()])]


def distance(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest relative L2 distance of tensors that are not zero."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs if b.norm() > 0)


def test_operands_in_bfloat16_keep_dtypes_and_most_digits():
    model, cond = problem("cpu")
    chain = chain_of(SampleRequest(model, cond, steps=STEPS, seed=5, tokens=7, prediction="v"))
    low = in_bfloat16(chain)
    given = [low.x, low.position, *low.modulation, low.cond_kv, *low.weights.tensors()]
    assert {tensor.dtype for tensor in given} == {torch.bfloat16} and low.coefficients is chain.coefficients
    found, expected = (reverse_loops([one], backend="reference")[0] for one in (low, chain))
    gradient = torch.autograd.grad(found.float().square().sum(), list(model.parameters()))
    assert {part.dtype for part in gradient} == {torch.float32}
    assert 0 < distance([found.detach()], [expected.detach()]) < 0.05


def test_a_cpu_takes_no_notice(monkeypatch):
    model, cond = problem("cpu")
    monkeypatch.setattr(sampler, "in_bfloat16", None)  # not called
    expected = drawn(model, cond)
    found = drawn(model, cond, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [None, "triton", "reference"])
def test_a_device_computes_in_bfloat16_and_answers_in_float32(backend):
    model, cond = problem("cuda")
    expected = drawn(model.double(), cond.double(), backend="reference")
    model = model.float()
    found = drawn(model, cond, torch.bfloat16, backend=backend)
    assert {tensor.dtype for tensor in found} == {torch.float32}
    assert 1e-5 < distance(found, expected) < 0.1
    exact = drawn(model, cond, torch.float16, backend=backend)  # which no kernel has
    assert distance(exact, expected) < 1e-3
