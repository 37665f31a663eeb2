"""How far boxes are from each other."""

from __future__ import annotations

import torch
from torch import Tensor


def convert_to_corners(boxes: Tensor) -> Tensor:
    """Left, top, right and bottom, [..., 4], from centre, width and height."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def compute_ious(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the generalised one of Rezatofighi et al. (2019), which falls on with the distance.

    Args:
        first: [..., 4], left, top, right, bottom.
        second: [..., 4], of a shape that goes with the first by broadcasting.

    Returns:
        Both [...]: 0..1, and -1..1. Boxes without area give 0 and -1, never NaN.
    """
    inner = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(
        first[..., :2], second[..., :2]
    )
    outer = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(
        first[..., :2], second[..., :2]
    )
    shared = inner.clamp(min=0).prod(-1)
    union = _area(first) + _area(second) - shared
    hull = outer.clamp(min=0).prod(-1)
    tiny = torch.finfo(union.dtype).eps ** 2
    iou = shared / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
