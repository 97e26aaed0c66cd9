"""The networks one by one: padding, order, identity at the start, known results."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune

from rohydr_fast.models.condition import ConditionEncoder
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.models.extractor import Extractor
from rohydr_fast.models.fusion import Fusion, FusionStack, causal_mask
from rohydr_fast.models.heads import Classifier, Discriminator
from rohydr_fast.models.normalise import ChannelNorm
from rohydr_fast.models.ragged import Layout, tokens_of
from rohydr_fast.models.reconstructor import MultimodalReconstructor, UnimodalReconstructor
from rohydr_fast.models.sequences import Sequence, positions, sinusoidal
from tests.small_model import open_up


def sequence(lengths, channels=4, tokens=None, seed=0) -> Sequence:
    lengths = torch.tensor(lengths)
    tokens = tokens or int(lengths.max())
    x = torch.randn(len(lengths), tokens, channels, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(tokens) < lengths[:, None]
    return Sequence(x * mask[..., None], lengths)


def layout(lengths, tokens=None) -> Layout:
    return Layout(torch.tensor(lengths), tokens or max(lengths), None)


class TestExtractor:
    @settings(deadline=None, max_examples=20)
    @given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 3))
    def test_padding_reaches_no_real_token(self, lengths, extra):
        torch.manual_seed(0)
        extractor = Extractor(3, 8).eval()
        tokens = max(max(lengths), 1)
        x = torch.randn(len(lengths), tokens, 3)
        plain = extractor(x, torch.tensor(lengths))
        padded = torch.cat([x, torch.full((len(lengths), extra, 3), math.nan)], 1)
        longer = extractor(padded, torch.tensor(lengths))
        torch.testing.assert_close(longer.x[:, :tokens], plain.x, rtol=1e-5, atol=1e-6)
        assert not longer.x[~longer.mask()].any()

    def test_features_are_standardised(self):
        extractor = Extractor(2, 4)
        x = torch.randn(1, 3, 2)
        raw = extractor(x, torch.tensor([3])).x
        extractor.set_statistics(torch.tensor([5.0, -2.0]), torch.tensor([10.0, 0.5]))
        torch.testing.assert_close(extractor(x * torch.tensor([10.0, 0.5]) + torch.tensor([5.0, -2.0]),
                                             torch.tensor([3])).x, raw, rtol=1e-4, atol=1e-6)  # fmt: skip

    def test_both_directions_are_read(self):
        torch.manual_seed(0)
        extractor = Extractor(2, 8)
        x = torch.randn(1, 6, 2, requires_grad=True)
        extractor(x, torch.tensor([6])).x[0, 3].sum().backward()
        assert (x.grad[0].abs().sum(-1) > 0).all()


class TestConditionEncoder:
    def test_tokens_are_concatenated_and_masked_by_availability_and_length(self):
        encoder = ConditionEncoder(("a", "t"), 4, 8)
        sequences = {"a": sequence([2, 1]), "t": sequence([3, 3])}
        available = {"a": torch.tensor([True, True]), "t": torch.tensor([True, False])}
        encoded, mask = encoder(sequences, available)
        assert encoded.shape == (2, 5, 8)
        assert mask.tolist() == [[True, True, True, True, True], [True, False, False, False, False]]

    def test_order_and_modality_are_told_apart(self):
        torch.manual_seed(0)
        encoder = ConditionEncoder(("a", "t"), 4, 8)
        same = Sequence(torch.ones(1, 2, 4), torch.tensor([2]))
        yes = torch.tensor([True])
        encoded, _ = encoder({"a": same, "t": same}, {"a": yes, "t": yes})
        rows = encoded[0]
        assert all(not torch.allclose(rows[i], rows[j]) for i in range(4) for j in range(i))


class TestDenoiser:
    def test_it_starts_as_a_function_of_the_embedding_alone(self):
        """adaLN-Zero: with closed gates neither the step nor the condition matters yet."""
        torch.manual_seed(0)
        denoiser = Denoiser(4, 8, 2, 2)
        x = torch.randn(2, 3, 4)
        first = denoiser(x, torch.tensor([1, 1]), torch.randn(2, 5, 8))[0]
        assert torch.equal(first, denoiser(x, torch.tensor([900, 900]), torch.randn(2, 5, 8))[0])

    def test_condition_step_and_neighbours_matter_once_the_gates_open(self):
        denoiser = Denoiser(4, 8, 2, 2)
        open_up(denoiser, 0.3)
        x, cond, t = torch.randn(1, 3, 4), torch.randn(1, 5, 8), torch.tensor([10])
        base = denoiser(x, t, cond)
        moved = x.clone()
        moved[0, 2] += 1
        for changed in (denoiser(x, t, cond + 1), denoiser(x, t + 500, cond), denoiser(moved, t, cond)):
            assert all((a[0, 0] != b[0, 0]).all() for a, b in zip(changed, base, strict=True))

    def test_one_step_for_each_sample(self):
        denoiser = Denoiser(4, 8, 2, 2)
        open_up(denoiser, 0.3)
        x, cond = torch.randn(2, 3, 4), torch.randn(2, 5, 8)
        together = denoiser(x, torch.tensor([3, 700]), cond)[0]
        for i, t in enumerate((3, 700)):
            alone = denoiser(x[i : i + 1], torch.tensor([t]), cond[i : i + 1])[0]
            torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-6)

    def test_layers_may_be_parametrized(self):
        """What stands for a weight then is no parameter of its layer: of the new kind and of the old one."""
        denoiser = Denoiser(4, 8, 1, 2)
        open_up(denoiser, 0.3)
        x, t, cond = torch.randn(1, 3, 4), torch.tensor([10]), torch.randn(1, 5, 8)
        before = denoiser(x, t, cond)
        torch.nn.utils.parametrizations.weight_norm(denoiser.blocks[0].qkv)
        prune.identity(denoiser.blocks[0].modulation, "weight")
        torch.testing.assert_close(denoiser(x, t, cond), before)
        with torch.no_grad():
            denoiser.blocks[0].qkv.parametrizations.weight.original0.mul_(2)
            denoiser.blocks[0].modulation.weight_orig.mul_(2)
        assert not torch.allclose(denoiser(x, t, cond)[0], before[0])

    def test_every_parameter_has_a_gradient_once_the_gates_open(self):
        denoiser = Denoiser(4, 8, 2, 2)
        open_up(denoiser, 0.3)
        prediction, v = denoiser(torch.randn(2, 3, 4), torch.tensor([3, 700]), torch.randn(2, 5, 8))
        (prediction.pow(2).sum() + v.pow(3).sum()).backward()
        for name, p in denoiser.named_parameters():
            assert p.grad is not None and p.grad.abs().max() > 0, name


class TestChannelNorm:
    def test_first_batch_sets_later_ones_move(self):
        norm = ChannelNorm(2, momentum=0.5)
        x = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [99.0, 99.0]]])
        mask = torch.tensor([[True, True, False]])
        norm.update(x, mask)
        assert norm.mean.tolist() == [2.0, 20.0]
        torch.testing.assert_close(norm.std, torch.tensor([2**0.5, 200**0.5]))
        norm.update(x + 2, mask)
        assert norm.mean.tolist() == [3.0, 21.0]

    def test_inverse_and_a_constant_channel(self):
        norm = ChannelNorm(1)
        x = torch.full((2, 3, 1), 4.0)
        norm.update(x, torch.ones(2, 3, dtype=torch.bool))
        assert torch.isfinite(norm(x)).all()
        torch.testing.assert_close(norm.inverse(norm(x)), x)

    def test_a_single_token_changes_nothing(self):
        norm = ChannelNorm(1)
        norm.update(torch.full((1, 1, 1), 4.0), torch.ones(1, 1, dtype=torch.bool))
        assert norm.mean.item() == 0 and norm.std.item() == 1


class TestReconstructors:
    def test_both_start_as_the_identity(self):
        x = sequence([3, 2])
        assert torch.equal(UnimodalReconstructor(4, 8, 2)(x).x, x.x)
        fused = torch.randn(2, 6)
        assert torch.equal(MultimodalReconstructor(6)(fused), fused)

    def test_ur_keeps_padding_out(self):
        ur = UnimodalReconstructor(4, 8, 2)
        open_up(ur, 0.3)
        short = sequence([2])
        padded = Sequence(torch.nn.functional.pad(short.x, (0, 0, 0, 3)), short.lengths)
        torch.testing.assert_close(ur(padded).x[:, :2], ur(short).x, rtol=1e-5, atol=1e-6)
        assert not ur(padded).x[:, 2:].any()


class TestFusion:
    def test_the_causal_mask_of_equal_and_unequal_lengths(self):
        equal = causal_mask(layout([3]), layout([3]))[0]
        assert equal.int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
        unequal = causal_mask(layout([2]), layout([4]))[0]
        assert unequal.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]

    def test_padding_is_never_seen(self):
        mask = causal_mask(layout([2], tokens=4), layout([3], tokens=5))[0]
        assert not mask[:, 3:].any()

    def test_the_last_real_token_reads_everything_and_padding_nothing(self):
        torch.manual_seed(0)
        fusion = Fusion(("a", "t", "v"), 4, 2, 1)
        parts = {"a": sequence([2], tokens=4), "t": sequence([3], tokens=3), "v": sequence([4], tokens=6)}
        leaves = {m: s.x.clone().requires_grad_() for m, s in parts.items()}
        fused = fusion({m: Sequence(leaves[m], s.lengths) for m, s in parts.items()})
        (fused * torch.linspace(-1, 1, 24)).sum().backward()  # a plain sum of layer-normed channels is constant
        for m, leaf in leaves.items():
            touched = leaf.grad[0].abs().sum(-1) > 0
            assert touched.tolist() == parts[m].mask()[0].tolist(), m

    @pytest.mark.parametrize("layers", [1, 3])
    def test_the_last_token_of_a_stack_is_that_of_the_whole_stack(self, layers):
        torch.manual_seed(0)
        stack = FusionStack(8, 2, layers, dropout=0.0).double()
        for parameter in stack.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        lengths = torch.tensor([5, 0, 2])
        x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
        leaves, direction = [x, *stack.parameters()], torch.randn(3, 8, dtype=torch.float64)
        tokens = tokens_of(Sequence(x, lengths))
        whole = stack(tokens)[tokens.layout.last()]
        alone = stack.last_token(tokens)
        torch.testing.assert_close(alone, whole)
        gradients = [torch.autograd.grad((y * direction).sum(), leaves, retain_graph=True) for y in (alone, whole)]
        torch.testing.assert_close(*gradients)

    def test_stack_counts_are_mults(self):
        fusion = Fusion(("a", "t", "v"), 4, 2, 1)
        assert len(fusion.cross) == 6 and len(fusion.memory) == 3 and fusion.features == 24

    def test_an_absent_modality_gives_finite_numbers_and_gradients(self):
        fusion = Fusion(("a", "t"), 4, 2, 1)
        empty = Sequence(torch.zeros(1, 1, 4), torch.tensor([0]))
        fused = fusion({"a": empty, "t": sequence([3])})
        fused.sum().backward()
        assert torch.isfinite(fused).all()
        assert all(torch.isfinite(p.grad).all() for p in fusion.parameters())


def test_heads_have_the_shapes_of_their_losses():
    fused = torch.randn(5, 6)
    assert Discriminator(6, 8)(fused).shape == (5,)
    assert Classifier(6)(fused).shape == (5, 1)
    assert Classifier(6, outputs=3)(fused).shape == (5, 3)


def test_sinusoidal_by_hand_and_odd_widths():
    angles = sinusoidal(torch.tensor([2.0]), 4)[0]
    expected = [math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)]
    assert angles.tolist() == pytest.approx(expected, rel=1e-6)
    assert sinusoidal(torch.tensor([2.0]), 5).shape == (1, 5)
    assert positions(3, 4, torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
