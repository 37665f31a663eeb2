"""Loss of a dense head: the points that know an object best learn it, and how well their box fits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vfm.losses.base import Loss, check_weights
from vfm.losses.iou import compute_ious, to_corners
from vfm.types import Batch, Objects, Raw, require_target

_POINTS = 10
_FIT_POWER = 6.0


class DenseLoss(Loss):
    """Task-aligned assignment (TOOD; Feng et al., 2021), varifocal loss (Zhang et al., 2021), and generalized IoU."""

    def __init__(
        self, classes: float = 1.0, overlap: float = 2.0, alpha: float = 0.75, gamma: float = 2.0
    ) -> None:
        """Set the weights.

        Args:
            classes: Weight of the loss of the classes.
            overlap: Weight of the generalized intersection over union.
            alpha: Weight of points without an object.
            gamma: How much less quiet points without an object count.
        """
        super().__init__()
        check_weights(classes=classes, overlap=overlap, alpha=alpha, gamma=gamma)
        self.weights = {"classes": classes, "overlap": overlap}
        self.alpha, self.gamma = alpha, gamma

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return sums over a batch, scaled so that its objects count as one each, however many points learn from them.

        Returns:
            `classes` and `overlap`, weighted.
        """
        objects = require_target(batch, Objects, self)
        logits, boxes = raw["logits"].float(), raw["boxes"].float()
        assigned = assign_points(logits, boxes, raw["points"], objects)
        image, point = assigned.point
        goal = torch.zeros_like(logits)
        goal[image, point, objects.labels[assigned.object]] = assigned.fit
        _, generalized = compute_ious(
            to_corners(boxes[image, point]), to_corners(objects.boxes[assigned.object])
        )
        quiet = self.alpha * logits.detach().sigmoid() ** self.gamma
        weight = torch.where(goal > 0, goal, quiet)
        sums = {
            "classes": F.binary_cross_entropy_with_logits(logits, goal, weight, reduction="sum"),
            "overlap": ((1 - generalized) * assigned.fit).sum(),
        }
        scale = max(len(objects.labels), 1) / assigned.fit.sum().clamp(min=1.0)
        return {name: self.weights[name] * scale * value for name, value in sums.items()}


class Assignment(NamedTuple):
    """Points that learn from an object, K of them."""

    point: tuple[Tensor, Tensor]
    """int64 [K] of image, and of point: an index into `logits` and `boxes`."""
    object: Tensor
    """int64 [K], position among all objects of the batch."""
    fit: Tensor
    """float32 [K], score that the point should give its object."""


@torch.no_grad()
def assign_points(logits: Tensor, boxes: Tensor, points: Tensor, objects: Objects) -> Assignment:
    """Give every object the points within it whose class and box are best for it; none to two objects.

    Args:
        logits: Class logits of P points in each of N images, [N, P, C].
        boxes: Center, width and height of each point's box, [N, P, 4].
        points: Horizontal and vertical position of each point, [N, P, 2].
        objects: Objects of the N images.
    """
    counts: list[int] = objects.counts.tolist()
    start, parts = 0, []
    for image, count in enumerate(counts):
        if count:
            true = to_corners(objects.boxes[start : start + count])
            labels = objects.labels[start : start + count]
            point, owner, fit = _assign(
                logits[image].sigmoid()[:, labels], to_corners(boxes[image]), points[image], true
            )
            parts.append((torch.full_like(point, image), point, owner + start, fit))
        start += count
    if not parts:
        none = torch.zeros(0, dtype=torch.int64, device=logits.device)
        return Assignment((none, none), none, logits.new_zeros(0))
    images, point, owner, fit = (torch.cat(part) for part in zip(*parts, strict=True))
    return Assignment((images, point), owner, fit)


def _assign(
    scores: Tensor, boxes: Tensor, points: Tensor, true: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return points, the object of each, and its fit, for the M objects of one image.

    Args:
        scores: Score of each object's class at each point, [P, M].
        boxes: Corners of each point's box, [P, 4].
        points: Horizontal and vertical position of each point, [P, 2].
        true: Corners of each object's box, [M, 4].
    """
    iou, _ = compute_ious(boxes.unsqueeze(1), true.unsqueeze(0))
    offset = torch.cat([points.unsqueeze(1) - true[:, :2], true[:, 2:] - points.unsqueeze(1)], -1)
    inside = offset.amin(-1) > 0
    # Of an object without a point in it, such as one smaller than a cell, the nearest point.
    center = (true[:, :2] + true[:, 2:]) / 2
    nearest = (points.unsqueeze(1) - center).square().sum(-1).argmin(0)
    inside[nearest, torch.arange(len(true), device=true.device)] = True
    aligned = (scores * iou**_FIT_POWER).nan_to_num(nan=0.0).masked_fill(~inside, -1.0)
    best = aligned.topk(min(_POINTS, len(aligned)), dim=0).indices
    chosen = torch.zeros_like(inside).scatter_(0, best, True) & inside
    # A point within several objects is that one's which its box fits best.
    owner = iou.masked_fill(~chosen, -1.0).argmax(1)
    point = chosen.any(1).nonzero().squeeze(1)
    owner = owner[point]
    alignment, overlap = aligned[point, owner], iou[point, owner]
    # The best aligned point of an object is to give the best IoU as its score, the others less.
    highest = alignment.new_full((len(true),), 1e-9).scatter_reduce(0, owner, alignment, "amax")
    most = overlap.new_zeros(len(true)).scatter_reduce(0, owner, overlap, "amax")
    return point, owner, (alignment / highest[owner] * most[owner]).clamp(0, 1)
