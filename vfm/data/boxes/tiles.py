"""Large photos, cut into tiles of one size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vfm.data.boxes.scene import Annotation

_LEAST_VISIBLE = 0.3


def tiles(
    annotation: Annotation, labels: tuple[int, ...], side: int, overlap: float
) -> Iterator[tuple[Annotation, tuple[int, ...]]]:
    """The tiles of an image; the image itself where it is no larger than a tile and a half.

    Tiles are spread evenly, so that all are of full size. A box of which less than 30 % lies in a tile is ignored
    there.

    Args:
        annotation: Of the whole image.
        labels: Class of each box.
        side: Of a tile, in pixels.
        overlap: Least share of a tile that its neighbour shows too.
    """
    height, width = annotation.size
    if max(height, width) <= 1.5 * side:
        yield annotation, labels
        return
    h, w = min(side, height), min(side, width)
    for top in _starts(height, h, overlap):
        for left in _starts(width, w, overlap):
            yield _cut(annotation, labels, left, top, (h, w))


def _starts(length: int, side: int, overlap: float) -> list[int]:
    number = 1 + int(np.ceil((length - side) / (side * (1 - overlap)))) if length > side else 1
    return [round(start) for start in np.linspace(0, length - side, number).tolist()]


def _cut(
    annotation: Annotation, labels: tuple[int, ...], left: int, top: int, size: tuple[int, int]
) -> tuple[Annotation, tuple[int, ...]]:
    shift = np.array([left, top, left, top], np.float32)
    limit = np.array([size[1], size[0], size[1], size[0]], np.float32)
    moved = annotation.corners - shift
    inside = moved.clip(0, limit)
    visible = area(inside) / area(moved).clip(min=1e-6)
    kept = (area(inside) > 0) & (visible > 0)
    ignored = annotation.ignored | (visible < _LEAST_VISIBLE)
    own = tuple(label for label, there in zip(labels, kept, strict=True) if there)
    return Annotation(inside[kept], ignored[kept], size, (left, top)), own


def area(corners: np.ndarray) -> np.ndarray:
    """Areas [M] of boxes [M, 4]."""
    result: np.ndarray = (corners[:, 2:] - corners[:, :2]).clip(min=0).prod(axis=1)
    return result
