"""Corruptions of photos: the 15 of ImageNet-C at 5 strengths, and JPEG, resize, crop, rotation and darkness.

Kinds and strengths of the 15 are those of Hendrycks and Dietterich, Benchmarking neural network robustness to common
corruptions and perturbations, 2019. Their lengths in pixels are of photos of 224 x 224; here they grow and shrink with
the shorter side of the picture, so that any size is degraded alike. Otherwise than there, frost is drawn (theirs are
photographs), glass moves all pixels at once instead of swapping them one by one, and fog is a sum of noise by octave.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from vfm_runtime.media.image import Pixels

from vfm.data.corruptions import Corruption, compress_jpeg

Array = NDArray[np.float32]
Generator = np.random.Generator

_SIDE = 224
_STRENGTHS = (1.0, 2.0, 3.0, 4.0, 5.0)


def _round_values(values: NDArray[np.floating]) -> Pixels:
    """Return values of 0 to 1 as uint8."""
    rounded: Pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return rounded


def _scale_values(pixels: Pixels) -> Array:
    values: Array = pixels.astype(np.float32) / np.float32(255)
    return values


def _choose_unit(pixels: Pixels) -> float:
    """Return how many pixels of this picture are one of a picture of 224 x 224."""
    return float(min(pixels.shape[:2])) / _SIDE


def add_gaussian_noise(pixels: Pixels, strength: int, generator: Generator) -> Pixels:
    """Add noise to every value, as in low light."""
    sigma = (0.08, 0.12, 0.18, 0.26, 0.38)[strength]
    noise = sigma * generator.standard_normal(pixels.shape, np.float32)
    return _round_values(_scale_values(pixels) + noise)


def add_shot_noise(pixels: Pixels, strength: int, generator: Generator) -> Pixels:
    """Count few photons (Poisson noise)."""
    photons = (60, 25, 12, 5, 3)[strength]
    return _round_values(generator.poisson(_scale_values(pixels) * photons) / photons)


def add_impulse_noise(pixels: Pixels, strength: int, generator: Generator) -> Pixels:
    """Set values to black or white (salt and pepper), as faulty pixels are."""
    fraction = (0.03, 0.06, 0.09, 0.17, 0.27)[strength]
    draws = generator.random(pixels.shape, np.float32)
    salted: Pixels = np.where(draws < fraction, np.uint8(0), pixels)
    salted[draws < fraction / 2] = 255
    return salted


def blur_defocused(pixels: Pixels, strength: int, _: Generator) -> Pixels:
    """Spread every pixel over a disk, as a lens out of focus does."""
    radius, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[strength]
    unit = _choose_unit(pixels)
    scaled = radius * unit
    reach = int(np.ceil(scaled + 2))
    # The disk, of any radius: four samples a pixel either way.
    axis = (np.arange(4 * (2 * reach + 1)) + 0.5) / 4 - reach - 0.5
    disk = (axis[:, None] ** 2 + axis**2 <= scaled**2).astype(np.float32)
    kernel = cv2.GaussianBlur(
        cv2.resize(disk, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA), (5, 5), alias
    )
    return np.asarray(cv2.filter2D(pixels, -1, kernel / kernel.sum()), np.uint8)


def blur_by_glass(pixels: Pixels, strength: int, generator: Generator) -> Pixels:
    """Blur, and move every pixel a little, as frosted glass does."""
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[strength]
    unit = _choose_unit(pixels)
    height, width = pixels.shape[:2]
    blurred = cv2.GaussianBlur(pixels, (0, 0), max(sigma * unit, 0.2))
    rows, columns = np.indices((height, width))
    for _ in range(times):
        # Rounded at random, so that a small picture is moved now and then, and by as much on average.
        offsets = generator.uniform(-reach * unit, reach * unit, (2, height, width))
        down, right = np.floor(offsets + generator.random(offsets.shape)).astype(int)
        blurred = blurred[
            np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)
        ]
    return np.asarray(cv2.GaussianBlur(blurred, (0, 0), max(sigma * unit, 0.2)), np.uint8)


def _blur_along(values: Array, radius: float, sigma: float, angle: float) -> Array:
    """Blur by a motion: weights fall from the pixel itself to one side as half of a Gaussian.

    Args:
        values: Picture, [H, W] or [H, W, 3].
        radius: Half of the length of the motion in pixels.
        sigma: Standard deviation of the weights in pixels.
        angle: Direction of the motion in degrees.
    """
    steps = np.arange(0, 2 * radius + 1, 0.5)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    reach = int(np.ceil(steps[-1])) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    radians = np.deg2rad(angle)
    x, y = reach + steps * np.cos(radians), reach + steps * np.sin(radians)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for right, down in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = np.abs(1 - right - (x - left)) * np.abs(1 - down - (y - top))
        np.add.at(kernel, (top + down, left + right), (weights * part).astype(np.float32))
    blurred: Array = cv2.filter2D(
        values, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE
    ).astype(np.float32)
    return blurred


def blur_by_motion(pixels: Pixels, strength: int, generator: Generator) -> Pixels:
    """Blur as if the camera moved."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[strength]
    unit = _choose_unit(pixels)
    angle = generator.uniform(-45, 45)
    return _round_values(_blur_along(_scale_values(pixels), radius * unit, sigma * unit, angle))


def _zoom(values: Array, factor: float) -> Array:
    """Enlarge a picture around its middle, at the same size."""
    height, width = values.shape[:2]
    offset = np.array([width - 1, height - 1]) / 2 * (1 - factor)
    matrix = np.array([[factor, 0, offset[0]], [0, factor, offset[1]]])
    return np.asarray(
        cv2.warpAffine(values, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE), np.float32
    )


def blur_by_zoom(pixels: Pixels, strength: int, _: Generator) -> Pixels:
    """Blur as if the camera came nearer."""
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[strength]
    values = _scale_values(pixels)
    every = [_zoom(values, factor) for factor in np.arange(1, last, step)]
    return _round_values(np.mean([values, *every], axis=0))


def let_snow(pixels: Pixels, strength: int, generator: Generator) -> Pixels:
    """Whiten, and let flakes fall."""
    mean, sigma, zoom, least, radius, spread, remaining = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[strength]
    unit, values = _choose_unit(pixels), _scale_values(pixels)
    height, width = pixels.shape[:2]
    # Flakes are pixels of a picture of 224, enlarged.
    shape = [max(2, round(side / unit)) for side in (height, width)]
    flakes = _zoom((mean + sigma * generator.standard_normal(shape)).astype(np.float32), zoom)
    flakes[flakes < least] = 0
    sized = cv2.resize(flakes.clip(0, 1), (width, height), interpolation=cv2.INTER_AREA)
    angle = generator.uniform(-135, -45)
    layer = _blur_along(np.asarray(sized, np.float32), radius * unit, spread * unit, angle)[
        ..., None
    ]
    gray = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)[..., None]
    whitened = remaining * values + (1 - remaining) * np.maximum(values, 1.5 * gray + 0.5)
    return _round_values(whitened + layer + layer[::-1, ::-1])


def _draw_plasma(shape: tuple[int, int], decay: float, generator: Generator) -> Array:
    """Draw clouds, [H, W], from 0 to 1: noise of ever finer grids, weaker by the square of the decay each."""
    height, width = shape
    clouds = np.zeros(shape, np.float32)
    for octave in range(1, 8):
        grid = generator.uniform(-1, 1, (2**octave + 1, 2**octave + 1)).astype(np.float32)
        size = (width, height)
        fine = cv2.resize(grid, size, interpolation=cv2.INTER_LINEAR)
        clouds += np.asarray(fine, np.float32) / decay ** (2 * octave)
    clouds -= clouds.min()
    scaled: Array = clouds / max(float(clouds.max()), 1e-6)
    return scaled


def add_frost(pixels: Pixels, strength: int, generator: Generator) -> Pixels:
    """Lay ice over the picture, which is drawn."""
    remaining, added = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[strength]
    shape = pixels.shape[:2]
    # Crystals are ridges where clouds change their sign; between them the glass is clear here and there.
    ridges = 1 - np.abs(2 * _draw_plasma(shape, 1.15, generator) - 1)
    cover = _draw_plasma(shape, 1.35, generator)
    ice = (ridges**3 * 0.7 + 0.5 * cover).clip(0, 1)[..., None]
    color = np.array([0.82, 0.92, 1.0], np.float32)
    return _round_values(remaining * _scale_values(pixels) + added * ice * color)


def add_fog(pixels: Pixels, strength: int, generator: Generator) -> Pixels:
    """Lay clouds over the picture."""
    density, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[strength]
    values = _scale_values(pixels)
    most = float(values.max())
    clouds = _draw_plasma(pixels.shape[:2], decay, generator)[..., None]
    return _round_values((values + density * clouds) * most / (most + density))


def brighten(pixels: Pixels, strength: int, _: Generator) -> Pixels:
    """Raise the value of HSV."""
    hsv = cv2.cvtColor(_scale_values(pixels), cv2.COLOR_RGB2HSV)
    hsv[..., 2] = (hsv[..., 2] + (0.1, 0.2, 0.3, 0.4, 0.5)[strength]).clip(0, 1)
    return _round_values(np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32))


def flatten_contrast(pixels: Pixels, strength: int, _: Generator) -> Pixels:
    """Bring values near to their mean."""
    values = _scale_values(pixels)
    means = values.mean(axis=(0, 1))
    return _round_values((values - means) * (0.4, 0.3, 0.2, 0.1, 0.05)[strength] + means)


def stretch_elastically(pixels: Pixels, strength: int, generator: Generator) -> Pixels:
    """Move three points, and then every pixel by a smooth field (Simard et al., 2003)."""
    alpha, sigma, affine = (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[strength]
    height, width = pixels.shape[:2]
    side = min(height, width) * 244 / _SIDE  # what is 244 there
    middle, third = np.array([height, width], np.float32) // 2, min(height, width) // 3
    corners = middle + third * np.array([[1, 1], [1, -1], [-1, -1]], np.float32)
    moved = corners + generator.uniform(-affine * side, affine * side, (3, 2)).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    turned = cv2.warpAffine(pixels, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    fields = generator.uniform(-1, 1, (2, height, width)).astype(np.float32)
    right, down = (
        alpha * side * cv2.GaussianBlur(field, (0, 0), max(sigma * side, 0.3)) for field in fields
    )
    rows, columns = np.indices((height, width), np.float32)
    return np.asarray(
        cv2.remap(
            turned,
            columns + right,
            rows + down,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        ),
        np.uint8,
    )


def pixelate(pixels: Pixels, strength: int, _: Generator) -> Pixels:
    """Shrink, and enlarge without smoothing."""
    height, width = pixels.shape[:2]
    # A fraction of 224 pixels; smaller pictures keep the same fraction of their own.
    factor = (0.6, 0.5, 0.4, 0.3, 0.25)[strength]
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def compress_strongly(pixels: Pixels, strength: int, _: Generator) -> Pixels:
    """Save as JPEG of low quality."""
    return compress_jpeg(pixels, (25, 18, 15, 10, 7)[strength])


def shrink_picture(pixels: Pixels, fraction: float, _: Generator) -> Pixels:
    """Shrink to a fraction of the side."""
    height, width = pixels.shape[:2]
    size = (max(1, round(width * fraction)), max(1, round(height * fraction)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def crop_randomly(pixels: Pixels, fraction: float, generator: Generator) -> Pixels:
    """Cut a part out, at random."""
    height, width = pixels.shape[:2]
    rows, columns = max(1, round(height * fraction)), max(1, round(width * fraction))
    top = int(generator.integers(height - rows + 1))
    left = int(generator.integers(width - columns + 1))
    return np.ascontiguousarray(pixels[top : top + rows, left : left + columns])


def rotate_randomly(pixels: Pixels, degrees: float, generator: Generator) -> Pixels:
    """Turn around the middle, one way or the other."""
    height, width = pixels.shape[:2]
    angle = degrees if generator.random() < 0.5 else -degrees
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    turned = cv2.warpAffine(pixels, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned, np.uint8)


def darken(pixels: Pixels, fraction: float, _: Generator) -> Pixels:
    """Take light away."""
    return _round_values(_scale_values(pixels) * fraction)


def _define(name: str, apply: Callable[[Pixels, int, Generator], Pixels]) -> Corruption:
    """Define one of the 15, whose levels are its strengths, 1 to 5."""
    text = f"{name}, strength {{:g}} of 5"
    return Corruption(
        _STRENGTHS, "strength", text, lambda pixels, level, g: apply(pixels, int(level) - 1, g)
    )


IMAGENET_C: dict[str, dict[str, Corruption]] = {
    "noise": {
        "gaussian_noise": _define("Gaussian noise", add_gaussian_noise),
        "shot_noise": _define("shot noise", add_shot_noise),
        "impulse_noise": _define("impulse noise", add_impulse_noise),
    },
    "blur": {
        "defocus_blur": _define("out of focus", blur_defocused),
        "glass_blur": _define("frosted glass", blur_by_glass),
        "motion_blur": _define("motion", blur_by_motion),
        "zoom_blur": _define("zoom", blur_by_zoom),
    },
    "weather": {
        "snow": _define("snow", let_snow),
        "frost": _define("frost", add_frost),
        "fog": _define("fog", add_fog),
        "brightness": _define("brightness", brighten),
    },
    "digital": {
        "contrast": _define("low contrast", flatten_contrast),
        "elastic_transform": _define("elastic", stretch_elastically),
        "pixelate": _define("pixels", pixelate),
        "jpeg_compression": _define("strong JPEG", compress_strongly),
    },
}
"""The 15 of ImageNet-C by their families."""

EVERYDAY: dict[str, Corruption] = {
    "jpeg": Corruption(
        (95, 85, 70, 50, 30),
        "JPEG quality",
        "JPEG quality {:g}",
        lambda pixels, level, _: compress_jpeg(pixels, int(level)),
    ),
    "resize": Corruption(
        (0.75, 0.5, 0.35, 0.25, 0.15),
        "fraction of the side",
        "shrunk to {:g} of its side",
        shrink_picture,
    ),
    "crop": Corruption(
        (0.95, 0.9, 0.8, 0.7, 0.6),
        "fraction of the side",
        "cropped to {:g} of its side",
        crop_randomly,
    ),
    "rotation": Corruption(
        (5, 10, 15, 30, 45), "degrees", "turned by {:g} degrees", rotate_randomly
    ),
    "dark": Corruption(
        (0.8, 0.6, 0.4, 0.25, 0.15), "exposure", "darkened to {:g} of the light", darken
    ),
}
"""What happens to photos every day, beside the 15."""

MOVING = frozenset({"elastic_transform", "crop", "rotation"})
"""Kinds that move what is in the picture, so that boxes are not where they were."""
