"""The contract of heads that find objects, whatever finds them: boxes, classes, scores."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vfm.models.heads.head import Head
from vfm.types import Features, Raw


class DetectionHead(Head, ABC):
    """Boxes and their classes. N images, Q candidates for a box, C labels, K boxes in an answer."""

    needs_geometry = True
    gives_logits = True
    embeds_boxes = False
    """Whether `decode` also gives `box_embeddings` [N, K, D], by which an exported model is taught classes."""

    @property
    def max_objects(self) -> int | None:
        """Most objects that can be found in one input; None where there is no such number."""
        return None

    @abstractmethod
    def forward(self, features: Features) -> Raw:
        """Return raw outputs, of which a loss may want more in training.

        Returns:
            In evaluation at least `logits` [N, Q, C], a sigmoid of which is a score, and `boxes` [N, Q, 4], center,
            width and height as shares of the input.
        """

    @abstractmethod
    def decode(self, raw: Raw, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Return the boxes of each image, best first, none of them twice.

        Args:
            raw: Outputs of `forward` in evaluation.
            geometry: float [N, 6], as `vfm.preprocess.Geometry.to_row` gives it; None leaves the boxes as shares of the
                input.

        Returns:
            `boxes` [N, K, 4], left, top, right and bottom in pixels of the original image; `labels` int64 [N, K];
            `scores` [N, K], 0..1; and `box_embeddings` of a head that embeds boxes.
        """


def to_original(boxes: Tensor, geometry: Tensor | None) -> Tensor:
    """Return corners of boxes [N, K, 4] in pixels of the original image, within its borders.

    The boxes have center, width and height as fractions of the input, which remain where there is no geometry [N, 6].
    """
    corners = to_corners(boxes)
    if geometry is None:
        return corners
    covered, offset = geometry[:, None, 2:4], geometry[:, None, 0:2]
    whole = geometry[:, None, 4:6]
    corners = corners * covered.repeat(1, 1, 2) + offset.repeat(1, 1, 2)
    return torch.minimum(corners.clamp(min=0), whole.repeat(1, 1, 2))


def to_corners(boxes: Tensor) -> Tensor:
    """Return left, top, right and bottom of boxes [..., 4] of center, width and height."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)
