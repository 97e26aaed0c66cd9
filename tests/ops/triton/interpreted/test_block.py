"""`denoiser_block` by the Triton kernels in the interpreter: accuracy, masks, bits."""

import pytest
import torch

from rohydr_fast.ops.denoiser_block import denoiser_block
from rohydr_fast.ops.triton.status import HEAD_DIMS

from ...gradient_cases import gradients
from .rule import block_problem, check

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_result_and_gradients_of_every_head_size(head_dim, dtype):
    check("denoiser_block", block_problem(head_dim, head_dim, max(1, 8 // head_dim), dtype), dtype)


SIZES = {
    "one token, one key": dict(samples=1, tokens=1, keys=1),
    "more tokens and keys than a program takes": dict(samples=2, tokens=67, keys=71),
    "more samples than weight gradients are split into": dict(samples=5, tokens=3, keys=3),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_result_and_gradients_of_odd_sizes(sizes, dtype, monkeypatch):
    monkeypatch.setattr("rohydr_fast.ops.triton.tiles._PROGRAMS", 3)
    check("denoiser_block", block_problem(3 if dtype == torch.float32 else 1, 8, 1, dtype, **sizes), dtype)


def test_no_key_gives_no_attention_and_no_gradient():
    given = block_problem(1, 8, 2, torch.float32, samples=2)
    given |= {"token_mask": None, "key_mask": torch.tensor([[True] * 5, [False] * 5])}
    found = gradients("denoiser_block", given, torch.ones(2, 7, 16), backend="triton")
    of_kv = found["['cond_kv']"]
    assert of_kv[:, 0].abs().min() > 0 and not of_kv[:, 1].any()
    moved = {**given, "cond_kv": given["cond_kv"].clone()}
    moved["cond_kv"][:, 1] = torch.nan  # is not even looked at
    assert torch.equal(denoiser_block(**moved, backend="triton"), denoiser_block(**given, backend="triton"))


def test_what_the_masks_leave_out_is_not_looked_at_and_is_zero_in_the_result():
    given = block_problem(2, 8, 1, torch.float32, tokens=5)
    given |= {"token_mask": torch.tensor([[True, False, True, True, False], [True] * 5])}
    other = {**given, "x": given["x"].masked_fill(~given["token_mask"][..., None], torch.nan)}
    found = denoiser_block(**given, backend="triton")
    assert torch.equal(found, denoiser_block(**other, backend="triton"))
    assert not found[0, [1, 4]].any() and found[0, 0].all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_again_and_for_a_sample_alone(dtype):
    given = block_problem(4, 16, 1, dtype, samples=3)
    way = torch.randn(3, 7, 16).to(dtype)
    first, second = (gradients("denoiser_block", given, way, dtype, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = {**given, "x": given["x"][1:2], "modulation": given["modulation"][1:2], "cond_kv": given["cond_kv"][:, 1:2]}
    for name in ("token_mask", "key_mask"):
        alone[name] = given[name] if given[name] is None else given[name][1:2]
    together = denoiser_block(**given, backend="triton")
    assert torch.equal(denoiser_block(**alone, backend="triton"), together[1:2])


@pytest.mark.parametrize("sizes", [dict(samples=0), dict(tokens=0)], ids=str)
def test_an_empty_batch_or_sequence_gives_zero_gradients(sizes):
    given = block_problem(3, 8, 1, torch.float32, **sizes)
    found = gradients("denoiser_block", given, torch.zeros(given["x"].shape), backend="triton")
    assert all(gradient is not None and not gradient.any() for gradient in found.values())
