"""Tiles of one size, cut out of large photos."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vfm.data.detection.annotation import Annotation, Tile

_LEAST_VISIBLE = 0.3


def cut_tiles(
    annotation: Annotation, labels: tuple[int, ...], side: int, overlap: float
) -> Iterator[tuple[Annotation, tuple[int, ...]]]:
    """The tiles of an image; the image itself where it is no larger than a tile and a half.

    Tiles are spread evenly, so that all are of full size. A box of which less than 30 % lies in a tile is ignored
    there, unless its centre does. Where tiles overlap, each answers for its side of the overlap's middle.

    Args:
        annotation: Boxes of the whole image.
        labels: Class of each box.
        side: Height and width of a tile in pixels.
        overlap: Least fraction of a tile that its neighbour shows too.
    """
    height, width = annotation.size
    if max(height, width) <= 1.5 * side:
        yield annotation, labels
        return
    size = min(side, height), min(side, width)
    for top, (low, high) in _place_tiles(height, size[0], overlap):
        for left, (first, last) in _place_tiles(width, size[1], overlap):
            core = np.array([first, low, last, high])
            moved = annotation.corners - np.array([left, top] * 2, np.float32)
            inside = moved.clip(0, np.array([size[1], size[0]] * 2, np.float32))
            areas = compute_areas(inside)
            visible = areas / compute_areas(moved).clip(min=1e-6)
            is_core = is_centered_in(core, moved)
            # Of a box whose centre is here, a quarter may be: it counts in no other tile.
            ignored = annotation.ignored | ((visible < _LEAST_VISIBLE) & ~is_core)
            seen = (areas > 0) & (visible > 0)
            tile = Tile(left, top, core, is_core[seen])
            classes = tuple(label for label, is_seen in zip(labels, seen, strict=True) if is_seen)
            whole = annotation.areas
            parts = None if whole is None else (whole * visible)[seen].astype(np.float32)
            yield Annotation(inside[seen], ignored[seen], size, tile, parts), classes


def _place_tiles(length: int, side: int, overlap: float) -> list[tuple[int, tuple[float, float]]]:
    """Where tiles start along an axis, and from where to where each answers, seen from its start."""
    number = 1 + int(np.ceil((length - side) / (side * (1 - overlap)))) if length > side else 1
    starts = [round(start) for start in np.linspace(0, length - side, number).tolist()]
    middles = [(before + side + after) / 2 for before, after in pairwise(starts)]
    limits = pairwise([-np.inf, *middles, np.inf])
    return [(s, (low - s, high - s)) for s, (low, high) in zip(starts, limits, strict=True)]


def is_centered_in(core: NDArray[np.float64], corners: np.ndarray) -> NDArray[np.bool_]:
    """Which of the boxes [M, 4] have their centre in the region [4], bool [M]."""
    center = (corners[:, :2] + corners[:, 2:]) / 2
    result: NDArray[np.bool_] = ((center >= core[:2]) & (center < core[2:])).all(axis=1)
    return result


def compute_areas(corners: np.ndarray) -> np.ndarray:
    """Areas [M] of boxes [M, 4]."""
    result: np.ndarray = (corners[:, 2:] - corners[:, :2]).clip(min=0).prod(axis=1)
    return result
