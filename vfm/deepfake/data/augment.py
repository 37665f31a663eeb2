"""Augmentation that leaves a label as it is: one edit for a whole pair, or a benign one alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm.data.corruptions import compress_jpeg

Array = NDArray[Any]
"""What OpenCV gives, whose types say less than is known."""
Pixels = NDArray[np.uint8]
Mask = NDArray[np.float32]

_LEVELS = np.arange(256, dtype=np.float32)


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


def change_colors(
    pixels: Array, gain: float = 1.0, offset: ArrayLike = 0.0, saturation: float = 1.0
) -> Pixels:
    """Change an image, uint8 [h, w, 3]: linear in each channel about middle grey, then its saturation, 0 for grey."""
    table = np.broadcast_to((_LEVELS[:, None] - 128) * gain + 128 + np.asarray(offset), (256, 3))
    changed: Array = cv2.LUT(pixels, np.clip(np.rint(table), 0, 255).astype(np.uint8)[None])
    if saturation == 1.0:
        return changed
    gray = cv2.cvtColor(cv2.cvtColor(changed, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    mixed: Array = cv2.addWeighted(changed, saturation, gray, 1 - saturation, 0)
    return mixed


def jitter_colors(pixels: Pixels, generator: np.random.Generator, strength: float = 1.0) -> Pixels:
    """Change contrast, brightness, hue and saturation, each or not; at strength 1 a channel by up to 60 levels."""
    amounts = ((0.3, 0.5, None), (40, 0.5, None), (20, 0.4, 3), (0.4, 0.4, None))
    gain, bright, tint, saturation = (
        most * strength * generator.uniform(-1, 1, count) * (generator.random() < chance)
        for most, chance, count in amounts
    )
    return change_colors(pixels, 1 + float(gain), bright + tint, 1 + float(saturation))


def apply_edit(view: View, generator: np.random.Generator, *, resampling: bool = True) -> View:
    """Flip, turn, blur, recolour and compress image and mask, which keep their size; equal generators do the same.

    Resampling (to turn, blur or shrink) wipes traces that whole images of a generator carry.
    """
    moved = move_view(view, generator, resampling=resampling)
    pixels: Array = moved.pixels
    height, width = pixels.shape[:2]
    if resampling and generator.random() < 0.1:
        pixels = cv2.GaussianBlur(
            pixels, (0, 0), max(0.1, generator.uniform(0.0004, 0.006) * width)
        )
    if resampling and generator.random() < 0.15:
        scale = generator.uniform(0.35, 0.9)
        small = (max(8, round(width * scale)), max(8, round(height * scale)))
        pixels = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    if generator.random() < 0.6:
        pixels = jitter_colors(pixels, generator)
    if generator.random() < 0.1:
        noise = generator.uniform(1, 8) * generator.standard_normal(pixels.shape, np.float32)
        pixels = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    if generator.random() < 0.7:
        subsampling = "420" if generator.random() < 0.7 else "444"
        pixels = compress_jpeg(pixels, int(generator.integers(40, 101)), subsampling)
    return View(pixels, moved.mask)


def move_view(view: View, generator: np.random.Generator, *, resampling: bool = True) -> View:
    """Flip image and mask, and turn, scale and shift them about their middle where resampling is allowed."""
    pixels: Array = view.pixels
    mask: Array = view.mask
    if generator.random() < 0.5:
        pixels, mask = (np.ascontiguousarray(image[:, ::-1]) for image in view)
    if resampling and generator.random() < 0.7:
        height, width = mask.shape
        angle, scale = generator.uniform(-10, 10), generator.uniform(0.9, 1.1)
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
        matrix[:, 2] += generator.uniform(-0.05, 0.05, 2) * width
        pixels, mask = (
            cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
            for image in (pixels, mask)
        )
    return View(pixels, mask.clip(0, 1) if view.is_known else view.mask)


def apply_benign_edit(view: View, generator: np.random.Generator) -> View:
    """Do what people do to pictures without forging a face: the label stays, and what is covered leaves the mask.

    One of: the whole picture on another ground, a caption or watermark, a sticker, a smoothing filter.
    """
    edit = _BENIGN_EDITS[int(generator.integers(len(_BENIGN_EDITS)))]
    edited = edit(view, generator)
    return View(edited.pixels, edited.mask if view.is_known else view.mask)


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
