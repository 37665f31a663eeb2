"""Mosaics, crops and mirror images: random views of images with boxes, a function of the images and a seed."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from vfm.data.decode import Source
from vfm.data.detection.tiles import compute_areas
from vfm.preprocess import Preprocess

_LEAST_VISIBLE = 0.25
_LEAST_SIDE = 1.0
_ATTEMPTS = 10
# Logarithm of the most that a view changes the ratio of the sides.
_ASPECT = 0.3


class BoxView(NamedTuple):
    """Pixels with the boxes in them. M boxes."""

    pixels: NDArray[np.uint8]
    """[h, w, 3]."""
    corners: NDArray[np.float32]
    """[M, 4], left, top, right, bottom in pixels of the view."""
    labels: NDArray[np.int64]
    """[M]."""


class Picture(NamedTuple):
    """An image whose pixels are decoded when it is known how finely, with its boxes."""

    source: Source
    corners: NDArray[np.float32]
    """[M, 4], in pixels of the image."""
    labels: NDArray[np.int64]


class Region(NamedTuple):
    """A rectangle of an image, in its pixels; it may reach beyond."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Geometric:
    """How a view is cut out of one picture or of four."""

    preprocess: Preprocess
    """Preprocessing of the model, with size and fit of the view."""
    _: KW_ONLY
    zoom: tuple[float, float]
    """Least and greatest side of a view, as a fraction of the image's; above 1 the image is shrunk."""
    flip: float
    """Fraction of views that are mirror images."""

    @property
    def _ground(self) -> tuple[int, ...]:
        return tuple(round(255 * mean) for mean in self.preprocess.mean)

    def sample_view(self, picture: Picture, generator: np.random.Generator) -> BoxView:
        """A part of the image that shows at least one box as a whole, or the whole image on a larger ground."""
        size = self.preprocess.size
        region = self._draw_region(picture, generator)
        if self.preprocess.fit == "letterbox":
            # Grown around its center to the view's aspect ratio.
            grown = max(region.width / size[1], region.height / size[0])
            w, h = grown * size[1], grown * size[0]
            left, top = region.left - (w - region.width) / 2, region.top - (h - region.height) / 2
            region = Region(left, top, w, h)
        return self._flip_some(cut(picture, region, size, self._ground), generator)

    def sample_mosaic(self, pictures: Sequence[Picture], generator: np.random.Generator) -> BoxView:
        """Parts of four images around a random center (YOLOv4, Bochkovskiy et al., 2020)."""
        height, width = self.preprocess.size
        y, x = (round(n * generator.uniform(0.3, 0.7)) for n in (height, width))
        whole = np.empty((height, width, 3), np.uint8)
        parts = []
        quarters = ((0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width))
        for picture, (top, left, bottom, right) in zip(pictures, quarters, strict=True):
            size = (bottom - top, right - left)
            # At half to all of the scale of a view.
            source = picture.source
            scale = min(height / source.height, width / source.width) * generator.uniform(0.5, 1.0)
            region = _draw_corner(source, size[0] / scale, size[1] / scale, generator)
            view = cut(picture, region, size, self._ground)
            whole[top:bottom, left:right] = view.pixels
            shift = np.array([left, top, left, top], np.float32)
            parts.append((view.corners + shift, view.labels))
        corners, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        return self._flip_some(BoxView(whole, corners, labels), generator)

    def _draw_region(self, picture: Picture, generator: np.random.Generator) -> Region:
        height, width = picture.source.height, picture.source.width
        for _ in range(_ATTEMPTS if self.zoom != (1, 1) else 0):
            side = generator.uniform(*self.zoom)
            aspect = np.exp(generator.uniform(-_ASPECT, _ASPECT))
            w, h = width * side * aspect, height * side / aspect
            region = _draw_corner(picture.source, h, w, generator)
            low = picture.corners[:, :2] >= np.array([region.left, region.top])
            high = picture.corners[:, 2:] <= np.array([region.left + w, region.top + h])
            if not len(picture.corners) or (low & high).all(axis=1).any():
                return region
        return Region(0, 0, width, height)

    def _flip_some(self, view: BoxView, generator: np.random.Generator) -> BoxView:
        if generator.random() >= self.flip:
            return view
        corners = view.corners.copy()
        corners[:, [0, 2]] = view.pixels.shape[1] - view.corners[:, [2, 0]]
        return BoxView(np.ascontiguousarray(view.pixels[:, ::-1]), corners, view.labels)


def _draw_corner(
    source: Source, height: float, width: float, generator: np.random.Generator
) -> Region:
    """A region of this size at a random position: within the image, or with the image within it."""
    left, top = (
        generator.uniform(min(0.0, outer - inner), max(0.0, outer - inner))
        for outer, inner in ((source.width, width), (source.height, height))
    )
    return Region(left, top, width, height)


def cut(picture: Picture, region: Region, size: tuple[int, int], ground: Sequence[int]) -> BoxView:
    """A region of a picture at a given size; beyond the image there is ground.

    Args:
        picture: Image with its boxes.
        region: What to show of it.
        size: Height and width of the view in pixels.
        ground: Colour beyond the image.
    """
    source = picture.source
    y, x = size[0] / region.height, size[1] / region.width
    pixels = np.empty((*size, 3), np.uint8)
    pixels[:] = np.array(ground, np.uint8)
    top, left = max(region.top, 0.0), max(region.left, 0.0)
    bottom = min(region.top + region.height, source.height)
    right = min(region.left + region.width, source.width)
    rows = slice(round((top - region.top) * y), round((bottom - region.top) * y))
    columns = slice(round((left - region.left) * x), round((right - region.left) * x))
    h, w = rows.stop - rows.start, columns.stop - columns.start
    if h > 0 and w > 0:
        part = source.crop(top, left, bottom - top, right - left, max(y, x))
        shrink = min(part.shape[0] / h, part.shape[1] / w)
        kind = cv2.INTER_AREA if shrink > 2 else cv2.INTER_LINEAR
        pixels[rows, columns] = cv2.resize(part, (w, h), interpolation=kind)
    moved = picture.corners - np.array([region.left, region.top] * 2, np.float32)
    moved *= np.array([x, y] * 2, np.float32)
    inside = moved.clip(0, np.array([size[1], size[0]] * 2, np.float32))
    # Boxes of which little is left go, with what is left of them.
    sides = (inside[:, 2:] - inside[:, :2]).min(axis=1, initial=np.inf)
    visible = compute_areas(inside) >= _LEAST_VISIBLE * compute_areas(moved)
    seen = visible & (sides >= _LEAST_SIDE)
    return BoxView(pixels, inside[seen], picture.labels[seen])
