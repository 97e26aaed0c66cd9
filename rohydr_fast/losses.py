"""Eq. 4 to 12, one function each. Every norm is a mean over batch and elements, not a sum (docs/deviations.md).

Eq. 3 stands with the forward process, in `diffusion.process`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Mean of `value` (B, ...) where `mask` is True; 0 where nothing is.

    `mask` covers the leading dimensions: (B,) samples or (B, T) tokens.
    """
    expanded = mask.reshape(mask.shape + (1,) * (value.dim() - mask.dim())).expand_as(value)
    return torch.where(expanded, value, 0).sum() / expanded.sum().clamp(min=1)


def eq4_ur(recovered: Tensor, x_m: Tensor, mask: Tensor) -> Tensor:
    """L_UR of one modality: ||UR(x~_m^(0)) - x_m||^2 over the real tokens of the missing representations.

    Args:
        recovered, x_m: (B, T, C); the target is detached, or the extractor could shrink it to win.
        mask: (B, T) bool.
    """
    return masked_mean((recovered - x_m.detach()) ** 2, mask)


def eq5_rec(f_rec: Tensor, f_gt: Tensor, mask: Tensor) -> Tensor:
    """L_rec: ||f~_Mrec - f_Mgt||^2, (B, F) each; the ground truth is detached. `mask` (B,): has ground truth."""
    return masked_mean((f_rec - f_gt.detach()) ** 2, mask)


def eq6_discriminator(logit_gt: Tensor, logit_rec: Tensor, mask: Tensor) -> Tensor:
    """L_D = -log I_gt - log(1 - I_rec), from logits (B,): log(sigmoid) as printed is infinite at -120."""
    return masked_mean(F.softplus(-logit_gt), mask) + masked_mean(F.softplus(logit_rec), mask)


def eq7_adversarial(logit_rec: Tensor, mask: Tensor) -> Tensor:
    """L_adv = -log I_rec, from logits (B,)."""
    return masked_mean(F.softplus(-logit_rec), mask)


def eq8_mr(adversarial: Tensor, rec: Tensor, lambda_al: float) -> Tensor:
    """L_MR = lambda_al L_adv + (1 - lambda_al) L_rec."""
    return lambda_al * adversarial + (1 - lambda_al) * rec


def eq9_classifier(output: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """L_C1 or L_C2: ||y - y^||^2 for one output; cross-entropy for classes.

    Args:
        output: (B, 1) sentiment, or (B, classes) logits of the classes that divide [-3, 3] (`models.heads`).
        label: (B,) in [-3, 3].
        mask: (B,) bool.
    """
    if output.shape[1] == 1:
        return masked_mean((output[:, 0] - label) ** 2, mask)
    return masked_mean(F.cross_entropy(output, class_of(label, output.shape[1]), reduction="none"), mask)


def class_of(label: Tensor, classes: int) -> Tensor:
    """The class (B,) int64 of a sentiment: rounded half to even and clipped to the middle `classes` integers."""
    bound = (classes - 1) // 2
    return label.round().clamp(-bound, bound).long() + bound


def eq10_stage1(hddm: Tensor, ur: Tensor, lambda_g: float) -> Tensor:
    """L_S1 = (L_HDDM + lambda_g L_UR) / (1 + lambda_g)."""
    return (hddm + lambda_g * ur) / (1 + lambda_g)


def eq11_stage2(discriminator: Tensor, mr: Tensor) -> Tensor:
    """L_S2 = L_D + L_MR. Its two terms have disjoint parameters and optimizers, so they are never added in training."""
    return discriminator + mr


def eq12_stage3(c1: Tensor, c2: Tensor, lambda_c: float) -> Tensor:
    """L_S3 = lambda_c L_C1 + (1 - lambda_c) L_C2."""
    return lambda_c * c1 + (1 - lambda_c) * c2
