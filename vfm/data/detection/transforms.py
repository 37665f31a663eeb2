"""Random views of images with boxes: crops, mosaics, mirror images; a function of the images and a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from vfm.data.decode import Source
from vfm.data.detection.tiles import area
from vfm.preprocess import Preprocess

_LEAST_VISIBLE = 0.25
_LEAST_SIDE = 1.0
_ATTEMPTS = 10
# Logarithm of the most that a view changes the ratio of the sides.
_ASPECT = 0.3


class View(NamedTuple):
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


class Geometric:
    """How a view is cut out of one picture or of four."""

    def __init__(self, preprocess: Preprocess, *, zoom: tuple[float, float], flip: float) -> None:
        """Set what is drawn.

        Args:
            preprocess: Of the model: size and fit of the view.
            zoom: Least and greatest side of a view, as a share of the image's; above 1 the image is shrunk.
            flip: Share of views that are mirror images.
        """
        self.preprocess = preprocess
        self.zoom = zoom
        self.flip = flip

    def single(self, picture: Picture, generator: np.random.Generator) -> View:
        """A part of the image that shows at least one box as a whole, or the whole image on a larger ground."""
        region = self._region(picture, generator)
        if self.preprocess.fit == "letterbox":
            region = _fitted(region, self.preprocess.size)
        return self._flipped(cut(picture, region, self.preprocess.size, self._ground), generator)

    def mosaic(self, pictures: Sequence[Picture], generator: np.random.Generator) -> View:
        """Parts of four images around a random centre (YOLOv4, Bochkovskiy et al., 2020)."""
        height, width = self.preprocess.size
        y, x = (round(n * generator.uniform(0.3, 0.7)) for n in (height, width))
        whole = np.empty((height, width, 3), np.uint8)
        parts = []
        quarters = ((0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width))
        for picture, (top, left, bottom, right) in zip(pictures, quarters, strict=True):
            size = (bottom - top, right - left)
            view = cut(picture, self._part(picture, size, generator), size, self._ground)
            whole[top:bottom, left:right] = view.pixels
            shift = np.array([left, top, left, top], np.float32)
            parts.append((view.corners + shift, view.labels))
        corners, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        return self._flipped(View(whole, corners, labels), generator)

    @property
    def _ground(self) -> tuple[int, ...]:
        return tuple(round(255 * mean) for mean in self.preprocess.mean)

    def _region(self, picture: Picture, generator: np.random.Generator) -> Region:
        height, width = picture.source.height, picture.source.width
        for _ in range(_ATTEMPTS if self.zoom != (1, 1) else 0):
            side = generator.uniform(*self.zoom)
            aspect = np.exp(generator.uniform(-_ASPECT, _ASPECT))
            w, h = width * side * aspect, height * side / aspect
            left, top = (
                generator.uniform(min(0.0, outer - inner), max(0.0, outer - inner))
                for outer, inner in ((width, w), (height, h))
            )
            region = Region(left, top, w, h)
            if not len(picture.corners) or _shows_one(picture.corners, region):
                return region
        return Region(0, 0, width, height)

    def _part(
        self, picture: Picture, size: tuple[int, int], generator: np.random.Generator
    ) -> Region:
        """A part of the image for a quarter of a mosaic, at half to all of the scale of a view."""
        source = picture.source
        scale = min(
            self.preprocess.size[0] / source.height, self.preprocess.size[1] / source.width
        ) * generator.uniform(0.5, 1.0)
        h, w = size[0] / scale, size[1] / scale
        left, top = (
            generator.uniform(min(0.0, outer - inner), max(0.0, outer - inner))
            for outer, inner in ((source.width, w), (source.height, h))
        )
        return Region(left, top, w, h)

    def _flipped(self, view: View, generator: np.random.Generator) -> View:
        if generator.random() >= self.flip:
            return view
        corners = view.corners.copy()
        corners[:, [0, 2]] = view.pixels.shape[1] - view.corners[:, [2, 0]]
        return View(np.ascontiguousarray(view.pixels[:, ::-1]), corners, view.labels)


def cut(picture: Picture, region: Region, size: tuple[int, int], ground: Sequence[int]) -> View:
    """A region of a picture at a given size; beyond the image there is ground.

    Args:
        picture: The image.
        region: What to show of it.
        size: Height and width of the view in pixels.
        ground: Colour beyond the image.
    """
    source = picture.source
    y, x = size[0] / region.height, size[1] / region.width
    image = source.pixels(max(y, x))
    part, place = _inside(region, source, size)
    pixels = np.empty((*size, 3), np.uint8)
    pixels[:] = np.array(ground, np.uint8)
    top, left, bottom, right = place
    if bottom > top and right > left:
        fy, fx = image.shape[0] / source.height, image.shape[1] / source.width
        rows = slice(
            round(part.top * fy),
            max(round(part.top * fy) + 1, round((part.top + part.height) * fy)),
        )
        columns = slice(
            round(part.left * fx),
            max(round(part.left * fx) + 1, round((part.left + part.width) * fx)),
        )
        crop = image[rows, columns]
        shrink = min(crop.shape[0] / (bottom - top), crop.shape[1] / (right - left))
        kind = cv2.INTER_AREA if shrink > 2 else cv2.INTER_LINEAR
        pixels[top:bottom, left:right] = cv2.resize(
            crop, (right - left, bottom - top), interpolation=kind
        )
    return View(pixels, *_boxes(picture, region, size))


def _inside(
    region: Region, source: Source, size: tuple[int, int]
) -> tuple[Region, tuple[int, int, int, int]]:
    """The part of a region that the image covers, and its top, left, bottom and right in the view."""
    y, x = size[0] / region.height, size[1] / region.width
    left, top = max(region.left, 0.0), max(region.top, 0.0)
    right = min(region.left + region.width, source.width)
    bottom = min(region.top + region.height, source.height)
    place = (
        round((top - region.top) * y),
        round((left - region.left) * x),
        round((bottom - region.top) * y),
        round((right - region.left) * x),
    )
    return Region(left, top, right - left, bottom - top), place


def _boxes(
    picture: Picture, region: Region, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The boxes in a view; those of which little is left go, with what is left of them."""
    scale = np.array([size[1] / region.width, size[0] / region.height] * 2, np.float32)
    start = np.array([region.left, region.top] * 2, np.float32)
    moved = (picture.corners - start) * scale
    inside = moved.clip(0, np.array([size[1], size[0]] * 2, np.float32))
    sides = (inside[:, 2:] - inside[:, :2]).min(axis=1, initial=np.inf)
    kept = (area(inside) >= _LEAST_VISIBLE * area(moved)) & (sides >= _LEAST_SIDE)
    return inside[kept], picture.labels[kept]


def _shows_one(corners: NDArray[np.float32], region: Region) -> bool:
    left, top = region.left, region.top
    low = (corners[:, 0] >= left) & (corners[:, 1] >= top)
    high = (corners[:, 2] <= left + region.width) & (corners[:, 3] <= top + region.height)
    return bool((low & high).any())


def _fitted(region: Region, size: tuple[int, int]) -> Region:
    """The region grown around its centre to the view's aspect ratio."""
    height, width = size
    grown = max(region.width / width, region.height / height)
    w, h = grown * width, grown * height
    return Region(region.left - (w - region.width) / 2, region.top - (h - region.height) / 2, w, h)
