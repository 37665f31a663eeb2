"""Tiles: large images are cut into overlapping tiles of one size, and the boxes that are found in the tiles merged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.errors import OptionError
from vfm_runtime.media.image import ImageError
from vfm_runtime.validation import is_number, is_whole

MAX_TILES = 1024
"""Most tiles of one image, unless a contract says another number."""

LEAST_SIDE = 32
"""Least side of a tile in pixels."""

_WHOLE = 1.5  # sides of a tile up to which an image stays whole
_SAME = 0.5  # least IoU, in the overlap of their tiles, of two boxes of one object
_INSIDE = 0.8  # least fraction of a piece of an object that lies in the box of all of it
_EDGE = 0.01  # fraction of a tile's side within which a box ends at its edge
_LEAST_SCORE = 0.01


class Region(NamedTuple):
    """Where a tile lies in its image, in pixels."""

    left: int
    top: int
    right: int
    bottom: int


class ScoredBoxes(NamedTuple):
    """Boxes that were found in an image, or in a tile of it. K boxes."""

    boxes: NDArray[np.float32]
    """[K, 4], left, top, right, bottom in pixels of the image or tile."""
    class_ids: NDArray[np.int64]
    """[K]."""
    scores: NDArray[np.float32]
    """[K]."""


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles; part of a model's preprocessing.

    Raises:
        OptionError: A value lies outside its range.
    """

    side: int
    """Height and width of a tile in pixels."""
    overlap: float = 0.2
    """Least fraction of a tile that its neighbor shows too."""
    max_tiles: int = MAX_TILES
    """Most tiles of one image; a larger image is refused."""

    def __post_init__(self) -> None:
        if not is_whole(self.side) or self.side < LEAST_SIDE:
            raise OptionError(
                f"tile is {self.side}. Give the side of a tile in pixels, {LEAST_SIDE} or more."
            )
        if not is_number(self.overlap) or not 0 <= self.overlap < 0.9:
            raise OptionError(f"tile_overlap is {self.overlap}. Give a share from 0 to below 0.9.")
        if not is_whole(self.max_tiles) or self.max_tiles < 1:
            raise OptionError(f"max_tiles is {self.max_tiles}. Give a number of tiles, 1 or more.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as contracts hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from what `to_dict` returned.

        Raises:
            OptionError: A value is missing, unknown or outside its range.
        """
        if not isinstance(values, Mapping) or set(values) != {"side", "overlap", "max_tiles"}:
            raise OptionError("Tiles are an object of side, overlap and max_tiles.")
        return cls(**values)

    def count(self, height: int, width: int) -> int:
        """Count the tiles of an image, whatever the limit."""
        return len(self._place(height)) * len(self._place(width)) if self.cuts(height, width) else 1

    def cuts(self, height: int, width: int) -> bool:
        """Tell whether an image is cut: it stays whole where it is no larger than a tile and a half."""
        return max(height, width) > _WHOLE * self.side

    def require_size(self, height: int, width: int, name: str) -> None:
        """Refuse an image, by its name, of more than `max_tiles`, with an ImageError."""
        if (count := self.count(height, width)) > self.max_tiles:
            raise ImageError(
                name,
                f"{width} x {height} pixels are {count:,} tiles of {self.side} pixels, and the model takes at most "
                f"{self.max_tiles:,}",
                "Cut it into parts, or make it smaller.",
            )

    def place(self, height: int, width: int) -> list[Region]:
        """Place tiles over an image, spread evenly, row by row, so that all are of full size."""
        if not self.cuts(height, width):
            return [Region(0, 0, width, height)]
        down, across = min(self.side, height), min(self.side, width)
        return [
            Region(left, top, left + across, top + down)
            for top in self._place(height)
            for left in self._place(width)
        ]

    def _place(self, length: int) -> list[int]:
        if length <= self.side:
            return [0]
        number = 1 + int(np.ceil((length - self.side) / (self.side * (1 - self.overlap))))
        return [round(start) for start in np.linspace(0, length - self.side, number).tolist()]


def merge_tiles(regions: Sequence[Region], tiles: Sequence[ScoredBoxes]) -> ScoredBoxes:
    """Join the boxes of the tiles of one image, best first; an object that several tiles show counts once.

    Two boxes of one class are of one object where they are of different tiles, both reach into the overlap of these,
    and agree on what lies in it; or where one is a piece, cut by the edge of its tile, of what the other encloses. The
    tile that sees most around the object gives its box; where each tile cuts the object, the box encloses all pieces.
    Boxes of scores below 0.01 are left out, beyond as many as one tile has.

    Args:
        regions: Where the T tiles lie.
        tiles: What was found in each, in pixels of the tile.
    """
    shift = np.array([(r.left, r.top, r.left, r.top) for r in regions], np.float32)
    owner = np.repeat(np.arange(len(tiles)), [len(tile.scores) for tile in tiles])
    boxes = np.concatenate([tile.boxes for tile in tiles]).reshape(-1, 4) + shift[owner]
    class_ids = np.concatenate([tile.class_ids for tile in tiles])
    scores = np.concatenate([tile.scores for tile in tiles])
    order = np.argsort(-scores, kind="stable")
    most = max((len(tile.scores) for tile in tiles), default=0)
    order = order[(np.arange(len(order)) < most) | (scores[order] >= _LEAST_SCORE)]
    ranked = ScoredBoxes(boxes[order], class_ids[order], scores[order])
    return _join_objects(ranked, owner[order], np.array(regions, np.float32).reshape(-1, 4))


def _join_objects(
    ranked: ScoredBoxes, owner: NDArray[np.int64], regions: NDArray[np.float32]
) -> ScoredBoxes:
    """Join boxes, best first, that are of one object.

    Args:
        ranked: K boxes in pixels of the image.
        owner: Index of the tile of each box, [K].
        regions: Left, top, right and bottom of each tile, [T, 4].
    """
    margins = _compute_margins(ranked.boxes, owner, regions)
    groups = list(range(len(owner)))
    members = [[index] for index in groups]
    pairs = sorted(_list_pairs(ranked, owner, regions, margins), key=lambda pair: -pair[0])
    for _, first, second in pairs:
        one, other = sorted((groups[first], groups[second]))
        owners = [{int(owner[i]) for i in members[group]} for group in (one, other)]
        # Boxes of one tile are never joined: that tile saw two objects.
        if one != other and not owners[0] & owners[1]:
            for index in members[other]:
                groups[index] = one
            members[one] += members[other]
            members[other] = []
    objects = [group for group in members if group]
    best = [min(group) for group in objects]
    boxes = ranked.boxes[best]
    for index, group in enumerate(objects):
        if len(group) > 1:
            widest = max(group, key=lambda i: (margins[i], -i))
            if margins[widest] > 0:
                boxes[index] = ranked.boxes[widest]
            else:
                parts = ranked.boxes[group]
                boxes[index] = [*parts[:, :2].min(axis=0), *parts[:, 2:].max(axis=0)]
    return ScoredBoxes(boxes, ranked.class_ids[best], ranked.scores[best])


def _list_pairs(
    ranked: ScoredBoxes,
    owner: NDArray[np.int64],
    regions: NDArray[np.float32],
    margins: NDArray[np.float32],
) -> Iterator[tuple[float, int, int]]:
    """Yield pairs of boxes of one object, each with how sure that is, and the indices of the two."""
    by_tile = [np.flatnonzero(owner == tile) for tile in range(len(regions))]
    overlaps = _intersect(regions[:, None], regions[None])
    for one, other in np.argwhere(np.triu(_measure(overlaps) > 0, 1)).tolist():
        shared = overlaps[one, other]
        edge = _EDGE * float((regions[one, 2:] - regions[one, :2]).max())
        near = shared + np.array([-edge, -edge, edge, edge], np.float32)
        a, b = (
            indices[_measure(_intersect(ranked.boxes[indices], near)) > 0]
            for indices in (by_tile[one], by_tile[other])
        )
        if not len(a) or not len(b):
            continue
        parts = [_intersect(ranked.boxes[indices], shared) for indices in (a, b)]
        agreement = _compare(ranked.boxes, a, b, parts, margins, edge)
        agreement *= ranked.class_ids[a][:, None] == ranked.class_ids[b][None]
        for i, j in np.argwhere(agreement > 0).tolist():
            sureness = float(agreement[i, j]) * float(min(ranked.scores[a[i]], ranked.scores[b[j]]))
            yield sureness, int(a[i]), int(b[j])


def _compare(
    boxes: NDArray[np.float32],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    parts: Sequence[NDArray[np.float32]],
    margins: NDArray[np.float32],
    edge: float,
) -> NDArray[np.float32]:
    """Return how well boxes of two tiles agree, 0 where they are of two objects, [A, B]."""
    first, second = parts[0][:, None], parts[1][None]
    common = _measure(_intersect(first, second))
    union = _measure(first) + _measure(second) - common
    overlap = common / np.maximum(union, 1e-6)
    agreement = np.where(overlap >= _SAME, overlap, 0)
    for axis, (pieces, wholes) in enumerate(((a, b), (b, a))):
        grown = boxes[wholes] + np.array([-edge, -edge, edge, edge], np.float32)
        piece = boxes[pieces][:, None]
        share = _measure(_intersect(piece, grown[None])) / np.maximum(_measure(piece), 1e-6)
        share *= margins[pieces][:, None] <= 0
        share = np.where(share >= _INSIDE, np.minimum(share, 1) * _SAME, 0)
        agreement = np.maximum(agreement, share if axis == 0 else share.T)
    return agreement.astype(np.float32)


def _compute_margins(
    boxes: NDArray[np.float32], owner: NDArray[np.int64], regions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return how far boxes [K, 4] end before the inner edges of their tiles, [K]; 0 or less where an edge cuts them."""
    if not len(boxes):
        return np.zeros(0, np.float32)
    image = np.concatenate([regions[:, :2].min(axis=0), regions[:, 2:].max(axis=0)])
    tile = regions[owner]
    gaps = np.concatenate([boxes[:, :2] - tile[:, :2], tile[:, 2:] - boxes[:, 2:]], axis=1)
    # The edges of the image cut nothing off.
    gaps = np.where(tile == image, np.inf, gaps)
    edge = _EDGE * (tile[:, 2:] - tile[:, :2]).max(axis=1)
    result: NDArray[np.float32] = (gaps.min(axis=1) - edge).astype(np.float32)
    return result


def _intersect(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what boxes [..., 4] have in common with others; its right lies left of its left where that is nothing."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    return np.concatenate([low, high], axis=-1)


def _measure(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the areas of boxes [..., 4]; 0 where they are empty."""
    areas: NDArray[np.float32] = (boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(axis=-1)
    return areas
