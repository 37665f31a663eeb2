from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vfm.losses import AsymmetricLoss, BinaryCrossEntropy, CrossEntropy, FocalLoss
from vfm.losses.classification import encode_one_hot
from vfm.types import Labels, MultiLabels

torch.manual_seed(0)
LOGITS = torch.randn(6, 4) * 3
HARD = torch.tensor([0, 1, 2, 3, 0, 1])
SOFT = torch.rand(6, 4).softmax(dim=1)
MANY = (torch.rand(6, 4) > 0.6).float()
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])


def each(loss, logits, target, weights=None, kind=Labels):
    """The loss of each image, of which the contract gives the sum."""
    loss.class_weights = weights
    batch = {"image": torch.zeros(len(logits), 1, 1, 3), "target": kind(target)}
    values = loss.per_image({"logits": logits}, batch)
    torch.testing.assert_close(loss({"logits": logits}, batch), {"classes": values.sum()})
    return values


def many(loss, logits, target, weights=None):
    return each(loss, logits, target, weights, MultiLabels)


def test_cross_entropy_of_hard_and_of_soft_targets():
    loss = CrossEntropy()
    torch.testing.assert_close(
        each(loss, LOGITS, HARD), each(loss, LOGITS, encode_one_hot(HARD, 4))
    )
    expected = -(SOFT * LOGITS.log_softmax(1)).sum(1)
    torch.testing.assert_close(each(loss, LOGITS, SOFT), expected)
    torch.testing.assert_close(
        each(loss, LOGITS, HARD, WEIGHTS), WEIGHTS[HARD] * each(loss, LOGITS, HARD)
    )


def test_smoothing_is_a_softer_target():
    soft = encode_one_hot(HARD, 4) * 0.8 + 0.2 / 4
    torch.testing.assert_close(
        each(CrossEntropy(label_smoothing=0.2), LOGITS, HARD), each(CrossEntropy(), LOGITS, soft)
    )


def test_binary_cross_entropy_is_the_mean_over_labels():
    p = LOGITS.sigmoid()
    terms = -(MANY * p.log() + (1 - MANY) * (1 - p).log())
    torch.testing.assert_close(many(BinaryCrossEntropy(), LOGITS, MANY), terms.mean(1))
    weighted = -(WEIGHTS * MANY * p.log() + (1 - MANY) * (1 - p).log())
    torch.testing.assert_close(many(BinaryCrossEntropy(), LOGITS, MANY, WEIGHTS), weighted.mean(1))


@pytest.mark.parametrize("multilabel", [False, True])
def test_focal_by_its_formula(multilabel):
    loss = FocalLoss(gamma=2)
    if multilabel:
        p = LOGITS.sigmoid()
        p_true = torch.where(MANY > 0, p, 1 - p)
        expected = (-((1 - p_true) ** 2) * p_true.log()).mean(1)
        torch.testing.assert_close(many(loss, LOGITS, MANY), expected)
    else:
        p_true = LOGITS.softmax(1).gather(1, HARD[:, None])[:, 0]
        torch.testing.assert_close(each(loss, LOGITS, HARD), -((1 - p_true) ** 2) * p_true.log())


def test_focal_without_focus_is_cross_entropy():
    torch.testing.assert_close(
        each(FocalLoss(gamma=0), LOGITS, SOFT), each(CrossEntropy(), LOGITS, SOFT)
    )
    torch.testing.assert_close(
        many(FocalLoss(gamma=0), LOGITS, MANY), many(BinaryCrossEntropy(), LOGITS, MANY)
    )


def test_asymmetric_by_its_formula():
    loss = AsymmetricLoss(gamma_negative=4, gamma_positive=1, margin=0.05)
    p = LOGITS.sigmoid()
    shifted = (p - 0.05).clamp(min=0)
    yes = -(1 - p) * p.log()
    no = -(shifted**4) * (1 - shifted).log()
    expected = (MANY * yes + (1 - MANY) * no).mean(1)
    torch.testing.assert_close(many(loss, LOGITS, MANY), expected)


def test_asymmetric_without_asymmetry_is_binary_cross_entropy():
    plain = AsymmetricLoss(gamma_negative=0, gamma_positive=0, margin=0)
    torch.testing.assert_close(many(plain, LOGITS, MANY), many(BinaryCrossEntropy(), LOGITS, MANY))


def test_easy_negatives_count_nothing():
    logits = torch.full((1, 4), -4.0, requires_grad=True)  # below the margin
    many(AsymmetricLoss(), logits, torch.zeros(1, 4)).sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (CrossEntropy(), Labels(HARD)),
        (FocalLoss(), Labels(HARD)),
        (FocalLoss(gamma=0.5), Labels(HARD)),
        (FocalLoss(gamma=0.5), MultiLabels(MANY)),
        (BinaryCrossEntropy(), MultiLabels(MANY)),
        (AsymmetricLoss(), MultiLabels(MANY)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_losses_and_gradients_stay_finite(loss, target, scale):
    logits = (LOGITS * scale).requires_grad_()
    losses = each(loss, logits, target.label, kind=type(target))
    assert losses.shape == (6,)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


def test_losses_of_torch_agree():
    torch.testing.assert_close(
        each(CrossEntropy(0.1), LOGITS, HARD).mean(),
        F.cross_entropy(LOGITS, HARD, label_smoothing=0.1),
    )


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(), AsymmetricLoss()])
def test_a_loss_for_several_labels_refuses_one(loss):
    with pytest.raises(ValueError, match=r"one label an image\. Give --model\.loss CrossEntropy"):
        each(loss, LOGITS, encode_one_hot(HARD, 4))


def test_a_loss_for_one_label_refuses_several():
    with pytest.raises(ValueError, match=r"the task is multi-label\. Give --model\.loss Binary"):
        many(CrossEntropy(), LOGITS, MANY)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: CrossEntropy(1.5), r"label_smoothing is 1\.5\. Give a number from 0 to 1"),
        (lambda: FocalLoss(-1), r"gamma is -1\. Give a number from 0 to 10"),
        (lambda: AsymmetricLoss(margin=2), r"margin is 2\. Give a number from 0 to 1"),
    ],
)
def test_values_out_of_range(make, text):
    with pytest.raises(ValueError, match=text):
        make()
