"""The references of the fused operations against the formulas spelled out, and the checks in front of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rohydr_fast import backend
from rohydr_fast.errors import BackendUnavailable, UsageError
from rohydr_fast.models.denoiser import DenoiserBlock
from rohydr_fast.ops.cross_attention import cross_attention
from rohydr_fast.ops.denoiser_block import denoiser_block
from tests.small_model import open_up


def attention_by_loops(q, k, v, heads, key_mask):
    """softmax(Q K' / sqrt(D)) V, one query of one head of one sample at a time, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    out = torch.zeros_like(q)
    size = q.shape[-1] // heads
    for b in range(q.shape[0]):
        keys = key_mask[b].nonzero()[:, 0]
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for t in range(q.shape[1]):
                if len(keys):
                    weights = (k[b, keys, part] @ q[b, t, part] / math.sqrt(size)).softmax(0)
                    out[b, t, part] = weights @ v[b, keys, part]
    return out


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 7), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.sampled_from([1, 3, 4]),
    st.integers(0, 2**31), st.sampled_from([0.1, 1.0, 30.0]),
)  # fmt: skip
def test_attention_equals_the_formula_for_any_shape_mask_and_scale(b, t, s, heads, size, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (scale * torch.randn(b, n, heads * size, generator=generator) for n in (t, s, s))
    mask = torch.rand(b, s, generator=generator) > 0.4
    found = cross_attention(q, k, v, num_heads=heads, key_mask=mask)
    expected = attention_by_loops(q, k, v, heads, mask)
    # Scores of size scale^2 carry rounding of that size into the exponential.
    assert (found - expected).abs().max() <= 2e-6 * max(1, scale**2) * v.abs().max()


def test_a_row_without_keys_gives_zeros_and_zero_gradients():
    q, k, v = (torch.randn(2, 3, 4, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[False] * 3, [True, False, True]])
    out = cross_attention(q, k, v, num_heads=2, key_mask=mask)
    assert not out[0].any() and out[1].any()
    out.sum().backward()
    for leaf in (q, k, v):
        assert torch.isfinite(leaf.grad).all() and not leaf.grad[0].any()
    assert not v.grad[1, 1].any()


def test_attention_gradients_pass_gradcheck():
    q, k, v = (torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5, 5))
    mask = torch.tensor([[True, True, False, True, True], [False] * 5])
    assert torch.autograd.gradcheck(lambda *x: cross_attention(*x, num_heads=2, key_mask=mask), (q, k, v))


def make_block(width=8):
    block = DenoiserBlock(width, 4.0)
    open_up(block, 0.3)
    return block


def test_block_equals_its_formula():
    """x += g1 SelfAttn(mod x); x += g2 CrossAttn(mod x, E); x += g3 MLP(mod x), written out with plain modules."""
    torch.manual_seed(0)
    block = make_block()
    x, cond, row = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(9, 8)
    token_mask, key_mask = torch.tensor([[True, True, False], [True] * 3]), torch.tensor([[True] * 5, [False] * 5])
    kv = torch.stack(block.kv(cond).chunk(2, -1))
    masks = dict(token_mask=token_mask, key_mask=key_mask)
    found = denoiser_block(x, row, kv, block.weights(), num_heads=2, **masks, backend="reference")

    def mod(x, shift, scale):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift

    q, k, v = block.qkv(mod(x, row[0], row[1])).chunk(3, -1)
    y = x + row[2] * block.self_out(attention_by_loops(q, k, v, 2, token_mask).float())
    q = block.q(mod(y, row[3], row[4]))
    y = y + row[5] * block.cross_out(attention_by_loops(q, kv[0], kv[1], 2, key_mask).float())
    h = block.fc1(mod(y, row[6], row[7]))
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    y = y + row[8] * block.fc2(h)
    torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-5)


def test_a_row_of_modulation_for_each_sample_equals_each_alone():
    block = make_block()
    x, kv, rows = torch.randn(2, 3, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 9, 8)
    options = dict(num_heads=2, backend="reference")
    together = denoiser_block(x, rows, kv, block.weights(), **options)
    for i in range(2):
        alone = denoiser_block(x[i : i + 1], rows[i], kv[:, i : i + 1], block.weights(), **options)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(q=torch.zeros(2, 3)), "q must be"),
        (dict(q=torch.zeros(2, 3, 4, dtype=torch.int64)), "q must be"),
        (dict(k=torch.zeros(2, 5, 6)), "k must have shape"),
        (dict(v=torch.zeros(2, 4, 4)), "v must have shape"),
        (dict(v=torch.zeros(2, 5, 4, dtype=torch.float64)), "v must be torch.float32"),
        (dict(k=torch.zeros(2, 0, 4), v=torch.zeros(2, 0, 4)), "at least one key"),
        (dict(num_heads=3), "num_heads must divide"),
        (dict(key_mask=torch.ones(2, 4, dtype=torch.bool)), "key_mask must be bool"),
        (dict(key_mask=torch.ones(2, 5)), "key_mask must be bool"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_argument_is_named(changes, words):
    arguments = dict(q=torch.zeros(2, 3, 4), k=torch.zeros(2, 5, 4), v=torch.zeros(2, 5, 4), num_heads=2)
    with pytest.raises(UsageError, match=words):
        cross_attention(**{**arguments, **changes})


def test_a_backend_that_cannot_run_is_an_error_by_argument_and_by_context():
    q = torch.zeros(1, 2, 4)
    with pytest.raises(BackendUnavailable, match="cuda"):
        cross_attention(q, q, q, num_heads=2, backend="cuda")
    with backend("triton"), pytest.raises(BackendUnavailable, match="triton"):
        cross_attention(q, q, q, num_heads=2)
    assert cross_attention(q, q, q, num_heads=2, backend="reference").shape == (1, 2, 4)
