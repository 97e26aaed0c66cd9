"""Attention of F, written out or by torch's fused one: the same, with its gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rohydr_fast.models import attention
from rohydr_fast.models.attention import attend, attention_mask


def case(batch, tokens, keys, heads, depth, seed, dtype):
    draw = torch.Generator().manual_seed(seed)
    width = heads * depth
    q, k, v, out = (torch.randn(batch, n, width, generator=draw, dtype=dtype) for n in (tokens, keys, keys, tokens))
    seen = torch.rand(batch, tokens, keys, generator=draw) > 0.4
    seen[:, torch.arange(tokens), torch.arange(tokens) % keys] = True  # one key at least
    return [tensor.requires_grad_() for tensor in (q, k, v)], seen, out


def results(inputs, seen, out, heads):
    value = attend(*inputs, attention_mask(seen, inputs[0], heads), heads)
    return [value.detach(), *torch.autograd.grad(value, inputs, out)]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    tokens=st.integers(1, 40),
    keys=st.integers(1, 40),
    heads=st.integers(1, 5),
    depth=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_written_out_it_is_the_fused_one(batch, tokens, keys, heads, depth, seed):
    given = case(batch, tokens, keys, heads, depth, seed, torch.float64)
    mine = results(*given, heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "WRITTEN_OUT", 0)
        expected = results(*given, heads)
    for found, value in zip(mine, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("tokens", "dims"), [(64, 3), (65, 4)])
def test_long_sequences_keep_no_weights(tokens, dims):
    """One weight for each pair would be more memory than anything else."""
    seen = torch.ones(2, tokens, 64, dtype=torch.bool)
    assert attention_mask(seen, torch.empty(0), 2).dim() == dims


def test_a_key_that_is_not_seen_is_not_looked_at():
    (q, k, v), seen, out = case(2, 5, 6, 2, 3, 1, torch.float32)
    seen[:, :, -1], seen[:, :, 0] = False, True
    expected = results((q, k, v), seen, out, 2)
    with torch.no_grad():
        k[:, -1], v[:, -1] = 7, 7
    for found, value in zip(results((q, k, v), seen, out, 2), expected, strict=True):
        torch.testing.assert_close(found, value)
