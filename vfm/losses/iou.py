"""IoU: intersection over union of boxes, plain and generalized (GIoU)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torchvision.ops import box_convert

to_corners = partial(box_convert, in_fmt="cxcywh", out_fmt="xyxy")
"""Returns left, top, right and bottom of boxes [..., 4] of center, width and height."""


def compute_ious(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return intersection over union, and the generalized one (Rezatofighi et al., 2019), which falls with distance.

    Args:
        first: Boxes [..., 4], left, top, right, bottom.
        second: Boxes [..., 4], of a shape that goes with the first by broadcasting.

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
    union = _measure_area(first) + _measure_area(second) - shared
    hull = outer.clamp(min=0).prod(-1)
    tiny = torch.finfo(union.dtype).eps ** 2
    iou = shared / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


def _measure_area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
