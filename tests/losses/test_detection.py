"""Matching and loss of a DETR."""

import itertools

import pytest
import torch
from torchvision.ops import box_convert

from vfm.losses import DetectionLoss
from vfm.losses.detection import _compute_costs, match_queries
from vfm.losses.iou import compute_ious
from vfm.types import Objects


def objects(*images):
    """Each image a list of boxes (centre, width, height) with their class in front."""
    rows = [row for image in images for row in image]
    boxes = torch.tensor([row[1:] for row in rows]).reshape(-1, 4).float()
    labels = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    return Objects(boxes, labels, torch.tensor([len(image) for image in images]))


def loss_of(raw, target, **weights):
    batch = {"image": torch.zeros(len(target.counts), 1, 1, 3), "target": target}
    return DetectionLoss(**weights)(raw, batch)


TWO = objects([(0, 0.3, 0.3, 0.2, 0.2), (1, 0.7, 0.6, 0.3, 0.4)], [(2, 0.5, 0.5, 0.5, 0.5)])


def raw(layers=2, images=2, groups=3, queries=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, images, groups, queries, classes, generator=generator)
    boxes = torch.rand(layers, images, groups, queries, 4, generator=generator) * 0.5 + 0.2
    return {"logits": logits.requires_grad_(), "boxes": boxes.requires_grad_()}


def test_overlaps_of_known_boxes():
    first = torch.tensor(
        [[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    )
    second = torch.tensor(
        [[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    )
    iou, generalised = compute_ious(first, second)
    torch.testing.assert_close(iou, torch.tensor([1 / 3, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(generalised[:3], torch.tensor([1 / 3, 1.0, -1 / 3]))
    assert generalised.isfinite().all()


def test_overlaps_equal_those_of_torchvision():
    from torchvision.ops import box_iou, generalized_box_iou

    torch.manual_seed(0)
    first, second = (box_convert(torch.rand(n, 4) * 0.5 + 0.1, "cxcywh", "xyxy") for n in (6, 9))
    iou, generalised = compute_ious(first[:, None], second[None])
    torch.testing.assert_close(iou, box_iou(first, second))
    torch.testing.assert_close(generalised, generalized_box_iou(first, second))


def test_matching_has_the_least_cost():
    given = raw()
    found = match_queries(given["logits"], given["boxes"], TWO)
    table = _compute_costs(given["logits"], given["boxes"], TWO).detach()
    for layer, group in itertools.product(range(2), range(3)):
        chosen = (found.query[0] == layer) & (found.query[1] == 0) & (found.query[2] == group)
        cost = sum(
            float(table[layer, 0, group, query, number])
            for query, number in zip(
                found.query[3][chosen].tolist(), found.object[chosen].tolist(), strict=True
            )
        )
        best = min(
            float(table[layer, 0, group, a, 0] + table[layer, 0, group, b, 1])
            for a, b in itertools.permutations(range(5), 2)
        )
        assert cost == pytest.approx(best)


def test_every_object_is_matched_once_in_each_layer_and_group():
    given = raw()
    found = match_queries(given["logits"], given["boxes"], TWO)
    assert found.object.bincount(minlength=3).tolist() == [6, 6, 6]
    assert (found.query[1][found.object == 2] == 1).all()


def test_more_objects_than_queries():
    many = objects([(0, 0.1 * i + 0.05, 0.5, 0.1, 0.1) for i in range(8)])
    given = raw(images=1)
    found = match_queries(given["logits"], given["boxes"], many)
    assert len(found.object) == 2 * 3 * 5
    assert all(value.isfinite() for value in loss_of(given, many).values())


@pytest.mark.parametrize("none", [objects([], []), objects([], [(0, 0.5, 0.5, 0.2, 0.2)])])
def test_images_without_objects(none):
    given = raw()
    losses = loss_of(given, none)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    assert given["logits"].grad.isfinite().all()
    assert (given["logits"].grad[:, 0] > 0).all()  # what is not there is answered less


def test_the_right_answer_costs_little():
    logits = torch.full((1, 2, 1, 4, 3), -12.0)
    boxes = torch.full((1, 2, 1, 4, 4), 0.1)
    for image, query, number in ((0, 1, 0), (0, 3, 1), (1, 0, 2)):
        logits[0, image, 0, query, TWO.labels[number]] = 12.0
        boxes[0, image, 0, query] = TWO.boxes[number]
    losses = loss_of({"logits": logits, "boxes": boxes}, TWO)
    assert sum(losses.values()) < 1e-3


def test_scores_learn_how_well_the_box_fits():
    """The class target of a matched query is its overlap to the power of gamma."""
    true = objects([(0, 0.5, 0.5, 0.4, 0.4)])
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.2]).view(1, 1, 1, 1, 4)  # half of the box
    logits = torch.zeros(1, 1, 1, 1, 1, requires_grad=True)
    loss_of({"logits": logits, "boxes": boxes}, true, gamma=1.5)["classes"].backward()
    assert float(logits.grad) == pytest.approx(0.5 - 0.5**1.5, abs=1e-4)


def test_groups_are_averaged_and_layers_summed():
    one = raw(layers=1, groups=1)
    same = {k: v.detach().expand(2, 2, 3, 5, v.shape[-1]) for k, v in one.items()}
    single, several = loss_of(one, TWO), loss_of(same, TWO)
    for name, value in single.items():
        torch.testing.assert_close(several[name], 2 * value)


def test_answers_of_evaluation_have_a_loss_too():
    one = raw(layers=1, groups=1)
    flat = {name: value[0, :, 0] for name, value in one.items()}
    torch.testing.assert_close(loss_of(flat, TWO), loss_of(one, TWO))


def test_nan_is_not_hidden():
    given = raw()
    with torch.no_grad():
        given["boxes"][0, 0, 0, 0] = float("nan")
        given["logits"][0, 0, 0, 0] = float("nan")
    assert sum(loss_of(given, TWO).values()).isnan()


def test_weights_outside_their_range():
    with pytest.raises(
        ValueError,
        match=r"distance is -1\. Give a number from 0 to 100 \(--model\.loss\.distance\)",
    ):
        DetectionLoss(distance=-1)
