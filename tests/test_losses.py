"""Eq. 4 to 12 against numbers worked out by hand."""

import math

import pytest
import torch

from rohydr_fast import losses

EVERYONE = torch.tensor([True, True])


def test_masked_mean_ignores_what_the_mask_leaves_out_even_nan():
    value = torch.tensor([[[1.0, 3.0], [math.nan, math.inf]], [[5.0, 7.0], [9.0, 11.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    assert losses.masked_mean(value, mask).item() == pytest.approx((1 + 3 + 5 + 7 + 9 + 11) / 6)


def test_masked_mean_of_nothing_is_zero():
    assert losses.masked_mean(torch.ones(2, 3), torch.tensor([False, False])).item() == 0


def test_eq4_is_the_mean_square_over_real_tokens_and_detaches_the_target():
    recovered = torch.tensor([[[1.0, 2.0], [9.0, 9.0]]], requires_grad=True)
    target = torch.tensor([[[0.0, 4.0], [0.0, 0.0]]], requires_grad=True)
    loss = losses.eq4_ur(recovered, target, torch.tensor([[True, False]]))
    assert loss.item() == pytest.approx((1 + 4) / 2)
    loss.backward()
    assert target.grad is None
    assert recovered.grad.flatten().tolist() == [1.0, -2.0, 0.0, 0.0]


def test_eq5_is_the_mean_square_over_clips_with_ground_truth():
    f_rec, f_gt = torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    assert losses.eq5_rec(f_rec, f_gt, torch.tensor([True, False])).item() == pytest.approx((1 + 4) / 2)


def test_eq6_and_eq7_by_hand():
    logit_gt, logit_rec = torch.tensor([0.0, math.log(3)]), torch.tensor([0.0, -math.log(3)])
    # I_gt = 1/2, 3/4; I_rec = 1/2, 1/4
    expected = -(math.log(0.5) + math.log(0.75)) / 2 - (math.log(0.5) + math.log(0.75)) / 2
    assert losses.eq6_discriminator(logit_gt, logit_rec, EVERYONE).item() == pytest.approx(expected, rel=1e-6)
    expected = -(math.log(0.5) + math.log(0.25)) / 2
    assert losses.eq7_adversarial(logit_rec, EVERYONE).item() == pytest.approx(expected, rel=1e-6)


def test_adversarial_losses_stay_finite_where_the_printed_form_does_not():
    logit = torch.tensor([-120.0, 120.0], requires_grad=True)
    assert torch.isinf(torch.log(torch.sigmoid(logit[0])))  # as printed
    loss = losses.eq7_adversarial(logit, EVERYONE) + losses.eq6_discriminator(logit, logit, EVERYONE)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logit.grad).all()


def test_eq8_eq10_eq11_eq12_by_hand():
    two, three = torch.tensor(2.0), torch.tensor(3.0)
    assert losses.eq8_mr(two, three, 0.25).item() == pytest.approx(0.25 * 2 + 0.75 * 3)
    assert losses.eq10_stage1(two, three, 0.5).item() == pytest.approx((2 + 0.5 * 3) / 1.5)
    assert losses.eq11_stage2(two, three).item() == pytest.approx(5)
    assert losses.eq12_stage3(two, three, 0.4).item() == pytest.approx(0.4 * 2 + 0.6 * 3)


def test_eq9_regression_by_hand():
    output, label = torch.tensor([[1.0], [-2.0]]), torch.tensor([3.0, -1.0])
    assert losses.eq9_classifier(output, label, EVERYONE).item() == pytest.approx((4 + 1) / 2)
    assert losses.eq9_classifier(output, label, torch.tensor([False, True])).item() == pytest.approx(1)


def test_eq9_classes_is_the_cross_entropy_of_the_rounded_label():
    output = torch.tensor([[0.0, 0.0, math.log(2)], [math.log(3), 0.0, 0.0]])
    label = torch.tensor([2.6, -0.4])  # classes +1 (clipped) and 0
    expected = (-math.log(2 / 4) - math.log(1 / 5)) / 2
    assert losses.eq9_classifier(output, label, EVERYONE).item() == pytest.approx(expected, rel=1e-6)


def test_classes_round_half_to_even_like_the_metric():
    label = torch.tensor([-3.0, -2.5, -0.5, 0.5, 1.5, 2.5, 3.0])
    assert losses.class_of(label, 7).tolist() == [0, 1, 3, 3, 5, 5, 6]
