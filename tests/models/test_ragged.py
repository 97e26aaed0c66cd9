"""Ragged batches without their padding: the rows, their places, and F on them."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rohydr_fast.models import ragged
from rohydr_fast.models.fusion import Fusion
from rohydr_fast.models.ragged import tokens_of
from rohydr_fast.models.sequences import Sequence, positions, token_mask, zero_padding

MODALITIES = ("a", "t", "v")


def sequence(lengths: list[int], tokens: int, channels: int, seed: int) -> Sequence:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), tokens, channels, dtype=torch.float64, generator=draw)
    lengths = torch.tensor(lengths)
    return Sequence(zero_padding(x, token_mask(lengths, tokens)).requires_grad_(), lengths)


def packed(worth: float, function, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "WORTH_IT", worth)
        return function(*args)


def test_rows_are_the_real_tokens_in_their_order_and_the_first_of_an_empty_clip():
    given = sequence([2, 0, 4], 5, 3, 0)
    x, layout = tokens_of(given)
    assert layout.index.tolist() == [0, 1, 5, 10, 11, 12, 13]
    assert torch.equal(x, given.x.flatten(0, 1)[layout.index])
    assert torch.equal(layout.padded(x), given.x)
    table = positions(5, 8, x)
    assert torch.equal(layout.positions(8, x), table[[0, 1, 0, 0, 1, 2, 3]])
    assert layout.last().tolist() == [1, 2, 6]
    gradient = torch.autograd.grad((layout.padded(2 * x) * given.x.detach()).sum(), given.x)[0]
    assert torch.equal(gradient, 2 * given.x.detach())


def test_where_next_to_nothing_is_padding_all_tokens_are_rows():
    given = sequence([5, 4, 5], 5, 3, 0)
    x, layout = tokens_of(given)
    assert layout.index is None and torch.equal(x, given.x.flatten(0, 1))
    assert torch.equal(layout.padded(x), given.x)
    assert torch.equal(layout.positions(8, x), positions(5, 8, x).repeat(3, 1))
    assert layout.last().tolist() == [4, 8, 14]


def fused(sequences: dict[str, Sequence]) -> list[torch.Tensor]:
    """f_M, and the gradient of everything."""
    torch.manual_seed(0)
    fusion = Fusion(MODALITIES, 6, 2, 2).double()
    leaves = [*fusion.parameters(), *[s.x for s in sequences.values()]]
    value = fusion(sequences)
    direction = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(1))
    return [value.detach(), *torch.autograd.grad((value * direction).sum(), leaves)]


lengths = st.lists(st.integers(0, 7), min_size=3, max_size=3)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.fixed_dictionaries({m: lengths for m in MODALITIES}), more=st.integers(0, 3), seed=st.integers(0, 999)
)
@example(lengths={"a": [0, 0, 0], "t": [1, 2, 3], "v": [7, 0, 1]}, more=2, seed=1)
def test_fusion_of_the_real_tokens_is_fusion_of_all(lengths, more, seed):
    tokens = {m: max(1, *part) + more for m, part in lengths.items()}
    sequences = {m: sequence(lengths[m], tokens[m], 6, seed + i) for i, m in enumerate(MODALITIES)}
    mine, expected = packed(1.0, fused, sequences), packed(-1.0, fused, sequences)
    for found, value in zip(mine, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-11)


def test_fusion_takes_the_time_of_real_tokens(monkeypatch):
    """What its layers see is a row for each of them."""
    seen = []
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", lambda self, x: (seen.append(len(x)), x)[1])
    given = {m: sequence([3, 9, 1], 20, 6, i) for i, m in enumerate(MODALITIES)}
    Fusion(MODALITIES, 6, 2, 2).double()(given)
    assert set(seen) == {13, 3}  # the last token of each clip, in the last layers


def test_compiled_it_is_any_number_of_tokens():
    fusion = Fusion(MODALITIES, 6, 2, 1).double().eval()
    given = {m: sequence([3, 9, 1], 20, 6, i) for i, m in enumerate(MODALITIES)}
    with torch.no_grad():
        compiled = torch.compile(fusion, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(given), fusion(given))
