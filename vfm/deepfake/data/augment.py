"""Augmentation that leaves a label as it is: one edit for a whole pair, or a benign one alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

Array = NDArray[Any]
"""What OpenCV gives, whose types say less than is known."""
Pixels = NDArray[np.uint8]
Mask = NDArray[np.float32]

_LEVELS = np.arange(256, dtype=np.float32)
_SUBSAMPLING = ("444", "420")
_TURN, _ZOOM, _SHIFT = 10.0, 0.1, 0.05
_QUALITY = (40, 101)


class View(NamedTuple):
    """An image with what is known of its forged part."""

    pixels: Pixels
    """uint8 [h, w, 3]."""
    mask: Mask
    """float32 [h, w], 0 to 1, how much of each pixel is forged; -1 everywhere where that is not known."""

    @property
    def is_known(self) -> bool:
        """Whether the mask says anything."""
        return bool(self.mask[0, 0] >= 0)


@dataclass(frozen=True)
class Colors:
    """A change of colours: linear in each channel, then of the saturation."""

    gain: float = 1.0
    """Contrast about middle grey."""
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Added to red, green and blue, in levels of 255."""
    saturation: float = 1.0
    """1 leaves it, 0 is grey."""

    @classmethod
    def draw(cls, generator: np.random.Generator, strength: float = 1.0) -> Colors:
        """Draw contrast, brightness, hue and saturation, each changed or not; a channel by 20 levels at strength 1."""

        def draw_amount(chance: float, count: int | None = None) -> Any:
            return strength * generator.uniform(-1, 1, count) * (generator.random() < chance)

        gain = 1.0 + 0.3 * draw_amount(0.5)
        bright, tint = 40 * draw_amount(0.5), 20 * draw_amount(0.4, 3)
        offset = tuple(float(bright + one) for one in tint)
        return cls(float(gain), offset, float(1.0 + 0.4 * draw_amount(0.4)))

    def apply(self, pixels: Pixels) -> Pixels:
        """Change the colours of an image, uint8 [h, w, 3]."""
        table = (_LEVELS[:, None] - 128) * self.gain + 128 + np.array(self.offset)
        levels = np.clip(np.rint(table), 0, 255).astype(np.uint8)[None]
        changed: Array = cv2.LUT(pixels, levels)
        if self.saturation == 1.0:
            return changed
        grey = cv2.cvtColor(cv2.cvtColor(changed, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        mixed: Array = cv2.addWeighted(changed, self.saturation, grey, 1 - self.saturation, 0)
        return mixed


@dataclass(frozen=True)
class Edit:
    """One draw of augmentation, to be applied to every image of a pair alike."""

    flip: bool = False
    matrix: tuple[float, ...] | None = None
    """Six numbers of an affine map of the square, whose side is 1; None leaves the pixels where they are."""
    colors: Colors | None = None
    blur: float = 0.0
    """Standard deviation of a Gaussian as a fraction of the side."""
    shrink: float = 1.0
    """The image is made this much smaller, and as large as before again."""
    noise: float = 0.0
    """Standard deviation in levels of 255."""
    seed: int = 0
    """Seed of the noise: a pair gets the same one."""
    quality: int | None = None
    """Quality of a JPEG that the image goes through; None for none."""
    subsampling: str = "420"
    """Subsampling of the JPEG's colours."""

    @classmethod
    def draw(cls, generator: np.random.Generator, *, resampling: bool = True) -> Edit:
        """Draw an edit; resampling (to move, blur or shrink) wipes traces that whole images of a generator carry."""
        flip = bool(generator.random() < 0.5)
        matrix = _draw_affine(generator) if resampling and generator.random() < 0.7 else None
        blur = generator.uniform(0.0004, 0.006) if generator.random() < 0.1 else 0.0
        shrink = generator.uniform(0.35, 0.9) if generator.random() < 0.15 else 1.0
        return cls(
            flip=flip,
            matrix=matrix,
            colors=Colors.draw(generator) if generator.random() < 0.6 else None,
            blur=float(blur) if resampling else 0.0,
            shrink=float(shrink) if resampling else 1.0,
            noise=float(generator.uniform(1, 8)) if generator.random() < 0.1 else 0.0,
            seed=int(generator.integers(2**32)),
            quality=int(generator.integers(*_QUALITY)) if generator.random() < 0.7 else None,
            subsampling=_SUBSAMPLING[int(generator.random() < 0.7)],
        )

    def apply(self, view: View) -> View:
        """Edit image and mask, which keep their size."""
        if not view.is_known:
            return View(self._edit_pixels(view.pixels), view.mask)
        mask = np.ascontiguousarray(self._move(view.mask).clip(0, 1))
        return View(self._edit_pixels(view.pixels), mask)

    def _edit_pixels(self, original: Pixels) -> Pixels:
        pixels = self._move(original)
        height, width = pixels.shape[:2]
        if self.blur:
            pixels = cv2.GaussianBlur(pixels, (0, 0), max(0.1, self.blur * width))
        if self.shrink != 1.0:
            small = (max(8, round(width * self.shrink)), max(8, round(height * self.shrink)))
            pixels = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        if self.colors is not None:
            pixels = self.colors.apply(pixels)
        if self.noise:
            grain = np.random.default_rng(self.seed).standard_normal(pixels.shape, np.float32)
            pixels = np.clip(np.rint(pixels + self.noise * grain), 0, 255).astype(np.uint8)
        if self.quality is not None:
            pixels = compress_jpeg(pixels, self.quality, self.subsampling)
        return np.ascontiguousarray(pixels)

    def _move(self, image: Array) -> Array:
        if self.flip:
            image = np.ascontiguousarray(image[:, ::-1])
        if self.matrix is None:
            return image
        height, width = image.shape[:2]
        matrix = np.array(self.matrix).reshape(2, 3) * np.array([1, 1, width])
        return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)


def compress_jpeg(pixels: Pixels, quality: int, subsampling: str = "420") -> Pixels:
    """The image, uint8 [h, w, 3], as it comes back from a JPEG file of a quality from 1 to 100."""
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality, colorspace="RGB", colorsubsampling=subsampling
    )
    decoded: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    return decoded


def apply_benign_edit(view: View, generator: np.random.Generator) -> View:
    """Do what people do to pictures without forging a face: the label stays, and what is covered leaves the mask.

    One of: the whole picture on another ground, a caption or watermark, a sticker, a smoothing filter.
    """
    edit = _BENIGN_EDITS[int(generator.integers(len(_BENIGN_EDITS)))]
    edited = edit(view, generator)
    return View(edited.pixels, edited.mask if view.is_known else view.mask)


def _draw_affine(generator: np.random.Generator) -> tuple[float, ...]:
    """Turned, scaled and shifted about the middle of a square whose side is 1."""
    angle = np.deg2rad(generator.uniform(-_TURN, _TURN))
    scale = generator.uniform(1 - _ZOOM, 1 + _ZOOM)
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    dx, dy = generator.uniform(-_SHIFT, _SHIFT, 2)
    x = 0.5 - a * 0.5 - b * 0.5 + dx
    y = 0.5 + b * 0.5 - a * 0.5 + dy
    return tuple(float(value) for value in (a, b, x, -b, a, y))


def _paste_on_ground(view: View, generator: np.random.Generator) -> View:
    """The whole picture, smaller, on a ground of one colour or on a blurred copy of itself."""
    height, width = view.pixels.shape[:2]
    scale = generator.uniform(0.7, 0.95)
    h, w = round(height * scale), round(width * scale)
    top, left = (int(generator.integers(spare + 1)) for spare in (height - h, width - w))
    if generator.random() < 0.5:
        ground: Array = cv2.GaussianBlur(view.pixels, (0, 0), 0.06 * width)
    else:
        ground = np.empty_like(view.pixels)
        ground[:] = generator.integers(0, 256, 3, np.uint8)
    pixels, mask = ground.copy(), np.zeros_like(view.mask)
    inside = (slice(top, top + h), slice(left, left + w))
    pixels[inside] = cv2.resize(view.pixels, (w, h), interpolation=cv2.INTER_AREA)
    mask[inside] = cv2.resize(view.mask, (w, h), interpolation=cv2.INTER_AREA)
    return View(pixels, mask)


def _add_caption(view: View, generator: np.random.Generator) -> View:
    """A line of text, on a bar or across the picture, opaque or not."""
    height, width = view.pixels.shape[:2]
    layer, opacity = view.pixels.copy(), np.zeros((height, width), np.uint8)
    strength = int(generator.integers(100, 256))
    y = int(generator.integers(height // 8, height))
    if generator.random() < 0.5:
        low, high = max(0, y - height // 9), min(height, y + height // 30)
        layer[low:high] = generator.integers(0, 256, 3, np.uint8)
        opacity[low:high] = strength
    letters = "".join(
        chr(code) for code in generator.integers(48, 123, int(generator.integers(4, 16)))
    )
    color = [int(value) for value in generator.integers(0, 256, 3)]
    size, thick = width / 256 * generator.uniform(0.5, 1.2), max(1, round(width / 128))
    x = int(generator.integers(-width // 10, width // 2))
    for image, value in ((layer, color), (opacity, [strength])):
        cv2.putText(
            image, letters, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, value, thick, cv2.LINE_AA
        )
    return _overlay(view, layer, opacity.astype(np.float32) / np.float32(255))


def _add_stickers(view: View, generator: np.random.Generator) -> View:
    """One to three flat shapes, anywhere."""
    height, width = view.pixels.shape[:2]
    layer, opacity = view.pixels.copy(), np.zeros((height, width), np.float32)
    for _ in range(int(generator.integers(1, 4))):
        center = (int(generator.integers(width)), int(generator.integers(height)))
        radius = generator.uniform(0.03, 0.14) * width
        angles = np.sort(generator.uniform(0, 2 * np.pi, int(generator.integers(3, 12))))
        reach = radius * generator.uniform(0.6, 1.0, len(angles))
        corners = np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None] + center
        shape = np.rint(corners).astype(np.int32)
        color = [int(value) for value in generator.integers(0, 256, 3)]
        cv2.fillPoly(layer, [shape], color, cv2.LINE_AA)
        cv2.fillPoly(opacity, [shape], [1.0])
    return _overlay(view, layer, opacity)


def _smooth_skin(view: View, generator: np.random.Generator) -> View:
    """A filter for smooth skin, over the whole picture, and a little more light."""
    sigma = float(generator.uniform(10, 40))
    smooth: Array = cv2.bilateralFilter(view.pixels, 5, sigma, 3.0)
    weight = float(generator.uniform(0.4, 1.0))
    light = float(generator.uniform(-4, 12))
    pixels: Array = cv2.addWeighted(smooth, weight, view.pixels, 1 - weight, light)
    return View(pixels, view.mask)


def _overlay(view: View, layer: Pixels, opacity: Mask) -> View:
    weight = opacity[..., None]
    mixed = view.pixels * (1 - weight) + layer * weight
    return View(np.rint(mixed).clip(0, 255).astype(np.uint8), view.mask * (1 - opacity))


_BENIGN_EDITS: tuple[Callable[[View, np.random.Generator], View], ...] = (
    _paste_on_ground,
    _add_caption,
    _add_stickers,
    _smooth_skin,
)
