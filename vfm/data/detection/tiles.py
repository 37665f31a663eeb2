"""Tiles of one size, cut out of large photos, and photos put together again from their tiles."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.tiling import Region, Tiling

from vfm.data.detection.annotation import Annotation, Tile
from vfm.data.records import Record
from vfm.data.sampler import Photos

_LEAST_VISIBLE = 0.3


def cut_tiles(
    annotation: Annotation, labels: tuple[int, ...], tiling: Tiling
) -> Iterator[tuple[Annotation, tuple[int, ...]]]:
    """The tiles of an image; the image itself where it is no larger than a tile and a half.

    A box of which less than 30 % lies in a tile is ignored there, unless its center does. Where tiles overlap, a center
    is in the tile on its side of the overlap's middle.

    Args:
        annotation: Boxes of the whole image.
        labels: Class of each box.
        tiling: Size and overlap of the tiles.
    """
    height, width = annotation.size
    if not tiling.cuts(height, width):
        yield annotation, labels
        return
    regions = tiling.place(height, width)
    down = share_out([(region.top, region.bottom) for region in regions])
    across = share_out([(region.left, region.right) for region in regions])
    for left, top, right, bottom in regions:
        (first, last), (low, high) = across[left], down[top]
        core = np.array([first - left, low - top, last - left, high - top])
        moved = annotation.corners - np.array([left, top] * 2, np.float32)
        inside = moved.clip(0, np.array([right - left, bottom - top] * 2, np.float32))
        areas = compute_areas(inside)
        visible = areas / compute_areas(moved).clip(min=1e-6)
        # Of a box whose center is here, a quarter may be: it is learned in no other tile.
        is_small_part = (visible < _LEAST_VISIBLE) & ~is_centered_in(core, moved)
        seen = (areas > 0) & (visible > 0)
        classes = tuple(label for label, is_seen in zip(labels, seen, strict=True) if is_seen)
        whole = annotation.areas
        parts = None if whole is None else (whole * visible)[seen].astype(np.float32)
        ignored = (annotation.ignored | is_small_part)[seen]
        size, tile = (bottom - top, right - left), Tile(left, top, annotation, labels)
        yield Annotation(inside[seen], ignored, size, tile, parts), classes


def share_out(spans: Sequence[tuple[int, int]]) -> dict[int, tuple[float, float]]:
    """By the start of each tile along an axis, from where to where it is nearer than its neighbours."""
    ordered = sorted(set(spans))
    middles = [(end + start) / 2 for (_, end), (start, _) in pairwise(ordered)]
    limits = pairwise([-np.inf, *middles, np.inf])
    return {start: limit for (start, _), limit in zip(ordered, limits, strict=True)}


def cut_record(record: Record, annotation: Annotation, tiling: Tiling | None) -> list[Record]:
    """Cut the record of a photo into those of its tiles; the record itself where it stays whole.

    Args:
        record: Record of a whole image.
        annotation: Boxes and size of that image.
        tiling: Size and overlap of the tiles; None to leave it whole.
    """
    height, width = annotation.size
    if tiling is None or not tiling.cuts(height, width):
        return [record]
    labels = record.label if isinstance(record.label, tuple) else ()
    tiles = []
    for part, classes in cut_tiles(annotation, labels, tiling):
        assert part.tile is not None
        name = f"{record.name}@{part.tile.left},{part.tile.top}"
        tiles.append(replace(record, label=classes, name=name, objects=part))
    return tiles


def group_tiles(records: Sequence[Record]) -> list[tuple[Record, list[int]]]:
    """Put photos together from their tiles, which follow each other: the record of each, and where its tiles are.

    A record that is no tile stands for itself.
    """
    groups: list[tuple[Record, list[int]]] = []
    for index, record in enumerate(records):
        tile = record.objects.tile if record.objects is not None else None
        if tile is None:
            groups.append((record, [index]))
            continue
        name = name_photo(record)
        if groups and groups[-1][0].name == name:
            groups[-1][1].append(index)
        else:
            photo = replace(record, label=tile.labels, name=name, objects=tile.photo)
            groups.append((photo, [index]))
    return groups


def find_photos(records: Sequence[Record]) -> Photos | None:
    """Find which records are tiles of one photo; None where there are none. A whole image is a photo of its own."""
    numbers: dict[str, int] = {}
    of_sample = np.zeros(len(records), np.int64)
    sizes: list[int] = []
    for index, record in enumerate(records):
        tile = record.objects.tile if record.objects is not None else None
        number = numbers.setdefault(name_photo(record), len(numbers))
        if number == len(sizes):
            sizes.append(3 * math.prod(tile.photo.size) if tile is not None else 0)
        of_sample[index] = number
    return Photos(of_sample, np.array(sizes)) if any(sizes) else None


def name_photo(record: Record) -> str:
    """Name of the photo that a record shows, or is a tile of."""
    is_tile = record.objects is not None and record.objects.tile is not None
    return record.name.rpartition("@")[0] if is_tile else record.name


def get_region(record: Record) -> Region:
    """Return where the tile of a record lies in its photo, in pixels."""
    assert record.objects is not None
    assert record.objects.tile is not None
    (left, top), (height, width) = record.objects.tile[:2], record.objects.size
    return Region(left, top, left + width, top + height)


def is_centered_in(core: NDArray[np.float64], corners: np.ndarray) -> NDArray[np.bool_]:
    """Which of the boxes [M, 4] have their center in the region [4], bool [M]."""
    center = (corners[:, :2] + corners[:, 2:]) / 2
    result: NDArray[np.bool_] = ((center >= core[:2]) & (center < core[2:])).all(axis=1)
    return result


def compute_areas(corners: np.ndarray) -> np.ndarray:
    """Areas [M] of boxes [M, 4]."""
    result: np.ndarray = (corners[:, 2:] - corners[:, :2]).clip(min=0).prod(axis=1)
    return result
