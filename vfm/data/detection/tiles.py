"""Large photos, cut into tiles of one size."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vfm.data.detection.annotation import Annotation, Tile

_LEAST_VISIBLE = 0.3


def tiles(
    annotation: Annotation, labels: tuple[int, ...], side: int, overlap: float
) -> Iterator[tuple[Annotation, tuple[int, ...]]]:
    """The tiles of an image; the image itself where it is no larger than a tile and a half.

    Tiles are spread evenly, so that all are of full size. A box of which less than 30 % lies in a tile is ignored
    there, unless its centre does. Where tiles overlap, each answers for its side of the overlap's middle.

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
    for top, rows in _starts(height, h, overlap):
        for left, columns in _starts(width, w, overlap):
            core = np.array([columns[0], rows[0], columns[1], rows[1]])
            yield _cut(annotation, labels, (left, top), core, (h, w))


def _starts(length: int, side: int, overlap: float) -> list[tuple[int, tuple[float, float]]]:
    """Where tiles start along an axis, and from where to where each answers, seen from its start."""
    number = 1 + int(np.ceil((length - side) / (side * (1 - overlap)))) if length > side else 1
    starts = [round(start) for start in np.linspace(0, length - side, number).tolist()]
    middles = [(before + side + after) / 2 for before, after in pairwise(starts)]
    limits = pairwise([-np.inf, *middles, np.inf])
    return [(s, (low - s, high - s)) for s, (low, high) in zip(starts, limits, strict=True)]


def _cut(
    annotation: Annotation,
    labels: tuple[int, ...],
    corner: tuple[int, int],
    core: NDArray[np.float64],
    size: tuple[int, int],
) -> tuple[Annotation, tuple[int, ...]]:
    moved = annotation.corners - np.array(corner * 2, np.float32)
    inside = moved.clip(0, np.array([size[1], size[0]] * 2, np.float32))
    visible = area(inside) / area(moved).clip(min=1e-6)
    kept = (area(inside) > 0) & (visible > 0)
    own = is_centered_in(core, moved)
    # Of a box whose centre is here, a quarter may be: it counts in no other tile.
    ignored = annotation.ignored | ((visible < _LEAST_VISIBLE) & ~own)
    there = tuple(label for label, seen in zip(labels, kept, strict=True) if seen)
    return Annotation(inside[kept], ignored[kept], size, Tile(*corner, core, own[kept])), there


def is_centered_in(core: NDArray[np.float64], corners: np.ndarray) -> NDArray[np.bool_]:
    """Which of the boxes [M, 4] have their centre in the region [4], bool [M]."""
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    result: NDArray[np.bool_] = ((centre >= core[:2]) & (centre < core[2:])).all(axis=1)
    return result


def area(corners: np.ndarray) -> np.ndarray:
    """Areas [M] of boxes [M, 4]."""
    result: np.ndarray = (corners[:, 2:] - corners[:, :2]).clip(min=0).prod(axis=1)
    return result
