"""The loss of a forgery detector, term by term against slow arithmetic."""

import math

import pytest
import torch
from torch.nn import functional as F

from vfm.deepfake.loss import DeepfakeLoss
from vfm.deepfake.target import DeepfakeTarget


def raw(number=6, grid=(4, 4), seed=0):
    torch.manual_seed(seed)
    return {
        "logits": torch.randn(number, requires_grad=True),
        "feature": F.normalize(torch.randn(number, 8), dim=1).requires_grad_(),
        "patches": torch.randn(number, *grid, requires_grad=True),
    }


LABEL = torch.tensor([0, 1, 0, 1, 0, 1])


def loss_of(raw, label, masks=None, /, **weights):
    """Sums of a batch whose masks are not known where none are given."""
    masks = torch.full((len(label), 1, 1), -1.0) if masks is None else masks
    return DeepfakeLoss(**weights)(raw, {"target": DeepfakeTarget(label, masks)})


def test_classes_are_the_entropy_summed():
    given = raw()
    expected = F.cross_entropy(
        torch.stack([torch.zeros(6), given["logits"]], 1), LABEL, reduction="sum"
    )
    torch.testing.assert_close(loss_of(given, LABEL)["classes"], expected)


def test_spread_is_that_of_all_pairs():
    given = raw()
    found = loss_of(given, LABEL, uniformity=0.5, alignment=0.1)
    potentials, distances = [], []
    for i in range(6):
        for j in range(i + 1, 6):
            squared = (given["feature"][i] - given["feature"][j]).square().sum().item()
            potentials.append(math.exp(-2 * squared))
            if LABEL[i] == LABEL[j]:
                distances.append(squared)
    uniformity = 6 * 0.5 * math.log(sum(potentials) / len(potentials))
    alignment = 6 * 0.1 * sum(distances) / len(distances)
    assert found["uniformity"].item() == pytest.approx(uniformity, rel=1e-5)
    assert found["alignment"].item() == pytest.approx(alignment, rel=1e-5)


def test_spread_of_features_apart_has_a_floor():
    feature = F.normalize(torch.randn(2, 5), dim=1)
    given = {**raw(2), "feature": torch.cat([feature[:1], -feature[:1]])}
    found = loss_of(given, torch.tensor([0, 1]), uniformity=1)["uniformity"]
    assert found.item() == pytest.approx(2 * max(-8, math.log(1e-6)), rel=1e-5)


def test_mixed_precision_keeps_near_features_apart():
    """Two features a thousandth apart are one in 16 bits."""
    first = F.normalize(torch.randn(1, 64), dim=1)
    near = F.normalize(first + 1e-3 * torch.randn(1, 64), dim=1)
    given = {**raw(2), "feature": torch.cat([first, near])}
    exact = loss_of(given, torch.tensor([1, 1]), alignment=1)["alignment"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss_of(given, torch.tensor([1, 1]), alignment=1)["alignment"]
    assert exact.item() == pytest.approx(2 * (first - near).square().sum().item(), rel=0.02)
    assert mixed.item() == exact.item()


def test_masks_teach_the_places():
    given = raw(2)
    mask = torch.zeros(2, 8, 8)
    mask[1, 2:6, 4:] = 1.0
    found = loss_of(given, torch.tensor([0, 1]), mask, mask=1.0)
    share = torch.zeros(2, 4, 4)
    share[1, 1:3, 2:] = 1.0
    probability = given["patches"].sigmoid()
    entropy = F.binary_cross_entropy(probability, share, reduction="none").mean((1, 2)).sum()
    dice = (2 * (probability[1] * share[1]).sum() + 1) / (probability[1].sum() + share[1].sum() + 1)
    torch.testing.assert_close(found["mask"], entropy + 1 - dice)
    assert found["mil"].item() == 0


def test_a_place_learns_how_much_of_it_is_forged():
    mask = torch.zeros(1, 8, 8)
    mask[0, 0, 0] = 1.0  # a quarter of the first place of 4 x 4
    patches = torch.zeros(1, 4, 4, requires_grad=True)
    given = {**raw(1), "patches": patches}
    found = loss_of(given, torch.tensor([1]), mask)["mask"]
    (gradient,) = torch.autograd.grad(found, patches)
    assert gradient[0, 0, 0] < gradient[0, 0, 1]
    assert len(gradient[0].unique()) == 2


def test_where_the_mask_is_unknown_the_sharpest_places_answer():
    given = raw(3)
    mask = torch.zeros(3, 8, 8)
    mask[1] = -1.0
    found = loss_of(given, torch.tensor([0, 1, 0]), mask, mil=0.1)
    bag = given["patches"][1].exp().mean().log()
    torch.testing.assert_close(found["mil"], 0.1 * F.softplus(-bag))
    known = loss_of(
        {name: value[[0, 2]] for name, value in given.items()}, torch.tensor([0, 0]), mask[[0, 2]]
    )
    torch.testing.assert_close(found["mask"], known["mask"])


def test_weights_of_zero_leave_plain_entropy():
    found = loss_of(raw(), LABEL, uniformity=0, alignment=0, mask=0, mil=0)
    total = torch.stack(list(found.values())).sum()
    torch.testing.assert_close(total, found["classes"])


@pytest.mark.parametrize("weights", [{}, {"uniformity": 0, "alignment": 0, "mask": 0, "mil": 0}])
@pytest.mark.parametrize("label", [[1], [0, 1], [0, 0]])
def test_every_output_has_a_finite_gradient(label, weights):
    """Also in a batch of one image and without a pair of a class: other ranks wait for gradients of every weight."""
    given = raw(len(label))
    mask = torch.full((len(label), 8, 8), -1.0)
    sums = loss_of(given, torch.tensor(label), mask, **weights)
    torch.stack(list(sums.values())).sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in given.values())


@pytest.mark.parametrize("name", ["uniformity", "alignment", "mask", "mil"])
def test_weights_outside_their_range(name):
    with pytest.raises(
        ValueError, match=rf"{name} is -1\. Give a number from 0 to 100 \(--model\.loss\.{name}\)"
    ):
        DeepfakeLoss(**{name: -1})
