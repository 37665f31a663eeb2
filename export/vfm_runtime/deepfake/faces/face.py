"""A detected face with its five landmarks, and the protocol of what finds faces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.deepfake.faces.geometry import move_points
from vfm_runtime.media.image import Pixels

DETECTORS = ("mtcnn", "precomputed")
"""Names of the ways to find faces."""


@dataclass(frozen=True, eq=False)
class Face:
    """A face in an image; coordinates are pixels of the image, whose first pixel spans 0 to 1."""

    box: NDArray[np.float64]
    """[4], left, top, right, bottom."""

    score: float
    """How sure the detector is, 0 to 1."""

    landmarks: NDArray[np.float64]
    """[5, 2], x and y of the eyes, the nose and the corners of the mouth, viewer's left first."""

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        width, height = self.box[2] - self.box[0], self.box[3] - self.box[1]
        return float(max(width, 0.0) * max(height, 0.0))

    @property
    def side(self) -> float:
        """Side in pixels of a square as large as the box: the size of the face."""
        return math.sqrt(self.area)

    def move(self, matrix: NDArray[np.float64]) -> Face:
        """Return the face in another image's coordinates, by the affine map [2, 3] to them."""
        left, top, right, bottom = self.box
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        moved = move_points(corners, matrix)
        box = np.concatenate([moved.min(0), moved.max(0)])
        return Face(box, self.score, move_points(self.landmarks, matrix))


@runtime_checkable
class FaceDetector(Protocol):
    """What finds faces."""

    def detect(self, image: Pixels) -> list[Face]:
        """Return the faces of an image, uint8 RGB [height, width, 3], surest first."""
        ...
