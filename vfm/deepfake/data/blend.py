"""Self-blended images: fakes made of a single real face, with the mask of what was blended in.

A face is laid over itself, after one of the two was changed a little in colour, sharpness, size and place. What is left
is what all face swaps share, a border between two sources, and nothing of one method (Shiohara and Yamasaki, 2022,
"Detecting Deepfakes with Self-Blended Images"). The part is bounded by a polygon about the face that is drawn anew each
time, bent, eroded and softened.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from vfm_runtime.deepfake.faces.crop import TEMPLATE, CropSpec, scale_template
from vfm_runtime.deepfake.faces.geometry import move_points
from vfm_runtime.errors import DataError

from vfm.data.corruptions import compress_jpeg
from vfm.deepfake.data.augment import Array, Mask, Pixels, change_colors, jitter_colors

Points = NDArray[np.float64]

VISIBLE = 1.5
"""Least mean difference of a blend from its real image within the mask, in levels of 255."""

# Outlines of parts of a face, in the unit square of `TEMPLATE`.
_JAW = (
    *((0.86, 0.50), (0.83, 0.68), (0.75, 0.86), (0.64, 0.98), (0.50, 1.02)),
    *((0.36, 0.98), (0.25, 0.86), (0.17, 0.68), (0.14, 0.50)),
)
_EYES = ((0.16, 0.34), (0.50, 0.29), (0.84, 0.34), (0.84, 0.54), (0.62, 0.73), (0.38, 0.73))
_MOUTH = ((0.28, 0.74), (0.50, 0.70), (0.72, 0.74), (0.76, 0.83), (0.62, 0.95), (0.38, 0.95))
_PARTS: dict[str, tuple[tuple[float, float], ...]] = {
    "whole": (*_JAW, (0.18, 0.34), (0.30, 0.18), (0.50, 0.13), (0.70, 0.18), (0.82, 0.34)),
    "brows": (*_JAW, (0.16, 0.36), (0.30, 0.31), (0.70, 0.31), (0.84, 0.36)),
    "lower": (*_JAW[1:-1], (0.17, 0.60), (0.50, 0.53), (0.83, 0.60)),
    "eyes": (*_EYES, (0.16, 0.54)),
    "mouth": (*_MOUTH, (0.24, 0.83)),
}
_CHANCES = (0.4, 0.3, 0.1, 0.12, 0.08)
# The same parts of the 68 points of the iBUG annotation.
_POINTS_68 = {
    "brows": np.arange(68),
    "lower": np.concatenate([np.arange(2, 15), np.arange(29, 36), np.arange(48, 68)]),
    "eyes": np.arange(17, 48),
    "mouth": np.arange(48, 68),
}
_OPACITIES = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
_ATTEMPTS = 8
_LEAST_AREA = 0.004
# The lengths of this file are in pixels of a crop of this side.
_SIDE = 256


class Blend(NamedTuple):
    """A real face and the fake made of it. The crop's side is s."""

    real: Pixels
    """uint8 [s, s, 3]; the crop itself, or the crop in other colours where these went to the ground."""
    fake: Pixels
    """uint8 [s, s, 3]; outside of the mask it is the real one."""
    mask: Mask
    """float32 [s, s], 1 within the blended part, less on its border, 0 outside."""


def self_blend(
    crop: Pixels,
    generator: np.random.Generator,
    landmarks: NDArray[np.floating] | None = None,
    spec: CropSpec | None = None,
) -> Blend:
    """Make a fake of a face with itself, never equal to it: what cannot be seen is drawn again.

    Args:
        crop: A face that lies as `spec` says, uint8 [s, s, 3].
        generator: Source of all that is random; the same state gives the same blend.
        landmarks: [K, 2] x and y in pixels of the crop: 5 in the order of `TEMPLATE`, 68 or more that begin with those
            of iBUG, or any others around the face. Without them, or where they bound nothing within the image, the
            face is taken to lie on the template.
        spec: How the crop was cut; by default as `CropSpec()`.

    Raises:
        ValueError: The crop is not a square of 32 pixels or more.
    """
    side = crop.shape[0]
    if crop.dtype != np.uint8 or crop.shape != (side, side, 3) or side < 32:
        raise DataError(
            f"The crop is {crop.dtype} of shape {list(crop.shape)}. "
            "Give uint8 RGB [s, s, 3], a square with a side of 32 pixels or more."
        )
    # The crop may have been resized since.
    spec = spec or CropSpec()
    on_template: Points = scale_template(spec) * (side / spec.size)
    points: Points | None = None if landmarks is None else np.asarray(landmarks, np.float64)
    for attempt in range(_ATTEMPTS):
        # Landmarks that gave nothing in half of the attempts lie outside.
        around = on_template if points is None or attempt >= _ATTEMPTS // 2 else points
        blend = _draw_blend(crop, generator, around)
        if blend is not None:
            return blend
    # A good deal lighter or darker: it shows on every image, a blank one too.
    mask = mask_face(on_template, side, 1 / 64)
    shift = 24.0 if crop.mean() < 128 else -24.0
    return Blend(crop, _mix(change_colors(crop, offset=shift), crop, mask), mask)


def _draw_blend(crop: Pixels, generator: np.random.Generator, points: Points) -> Blend | None:
    """One attempt; None where nothing of it can be seen."""
    source: Array = crop
    target: Array = crop
    if generator.random() < 0.5:
        source = _alter(crop, generator)
    else:
        target = _alter(crop, generator)
    side = crop.shape[0]
    # The source moves up to 3 % aside, 1.5 % up or down, and is up to 5 % smaller or larger.
    scale = generator.uniform(0.95, 1 / 0.95)
    dx, dy = generator.uniform(-0.03, 0.03) * side, generator.uniform(-0.015, 0.015) * side
    rest = (1 - scale) * (side - 1) / 2
    matrix = np.array([[scale, 0, rest + dx], [0, scale, rest + dy]])
    outline = move_points(_draw_outline(generator, points), matrix)
    mask = _draw_soft_mask(outline, side, generator)
    if mask is None:
        return None
    source = cv2.warpAffine(source, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    opacity = _OPACITIES[int(generator.integers(len(_OPACITIES)))]
    fake = _mix(source, target, mask * opacity)
    difference = cv2.mean(cv2.absdiff(fake, target), (mask > 0.5).astype(np.uint8))
    return Blend(target, fake, mask) if sum(difference[:3]) / 3 >= VISIBLE else None


def fit_affine(points_from: NDArray[np.floating], points_to: NDArray[np.floating]) -> Points:
    """Fit the affine map, [2, 3], that brings points, [K, 2], closest to others in the sense of least squares."""
    homogeneous = np.column_stack([points_from, np.ones(len(points_from))])
    target = np.asarray(points_to, np.float64)
    matrix: Array = np.linalg.lstsq(homogeneous, target, rcond=None)[0].T
    return matrix


def mask_face(points: NDArray[np.floating], side: int, blur: float) -> Mask:
    """Mask the face from brows to chin: float32 [side, side], 0 to 1, its border blurred by a fraction of the side.

    The points are those of `TEMPLATE`, [5, 2] in pixels.
    """
    filled = _fill(_fit_part("brows", np.asarray(points, np.float64)), side)
    mask: Array = cv2.GaussianBlur(filled, (0, 0), max(0.3, blur * side))
    return mask


def _mix(source: Array, target: Array, weight: Array) -> Array:
    mixed: Array = cv2.blendLinear(source, target, weight, 1 - weight)
    return mixed


def _alter(crop: Array, generator: np.random.Generator) -> Array:
    """Other colours, and a loss or gain of sharpness: another camera, another generator."""
    pixels: Array = jitter_colors(crop, generator, 0.6)
    side = crop.shape[0]
    kind = generator.random()
    if kind < 0.35:
        factor = (2, 4)[int(generator.random() < 0.5)]
        small = cv2.resize(pixels, (side // factor,) * 2, interpolation=cv2.INTER_NEAREST)
        pixels = cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)
    elif kind < 0.65:
        amount = generator.uniform(0.3, 1.0)
        smooth = cv2.GaussianBlur(pixels, (0, 0), side / _SIDE)
        pixels = cv2.addWeighted(pixels, 1 + amount, smooth, -amount, 0)
    elif kind < 0.8:
        pixels = cv2.GaussianBlur(pixels, (0, 0), generator.uniform(0.5, 2.0) * side / _SIDE)
    elif kind < 0.9:
        pixels = compress_jpeg(pixels, int(generator.integers(30, 90)))
    return pixels


def _draw_outline(generator: np.random.Generator, points: Points) -> Points:
    """[K, 2], the corners of a part of the face, in pixels, each a little off its place."""
    part = list(_PARTS)[int(generator.choice(len(_PARTS), p=_CHANCES))]
    if len(points) == len(TEMPLATE):
        corners = _fit_part(part, points)
    elif len(points) >= 68 and part in _POINTS_68:
        corners = points[_POINTS_68[part]]
    else:
        corners = points
    hull = cv2.convexHull(corners.astype(np.float32))[:, 0].astype(np.float64)
    reach = np.ptp(hull, axis=0)
    jittered: Points = hull + 0.03 * reach * generator.standard_normal(hull.shape)
    return jittered


def _fit_part(part: str, points: Points) -> Points:
    """A part of the face in pixels, [K, 2], where five points say that it lies."""
    return move_points(_PARTS[part], fit_affine(TEMPLATE, points))


def _fill(corners: Points, side: int) -> Array:
    """1 within the convex hull of corners, float32 [side, side]."""
    filled = np.zeros((side, side), np.float32)
    # Far outside, numbers would not fit.
    near = np.clip(np.rint(corners), -4 * side, 5 * side).astype(np.int32)
    cv2.fillConvexPoly(filled, cv2.convexHull(near), 1.0)
    return filled


def _draw_soft_mask(corners: Points, side: int, generator: np.random.Generator) -> Array | None:
    """The hull of corners bent, eroded and blurred; None where next to nothing of it lies in the image."""
    # At half the size: it is blurred anyway, and done in a quarter of the time.
    half = max(32, side // 2)
    unit = half / _SIDE
    mask = _bend(_fill(corners * (half / side), half), generator)
    radius = round(generator.uniform(2, 12) * unit)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    mask = cv2.erode(mask, disc, borderType=cv2.BORDER_REPLICATE)
    width = generator.uniform(4, 26) if generator.random() < 0.8 else generator.uniform(26, 60)
    kernel = 2 * round(width * unit / 2) + 1
    mask = cv2.GaussianBlur(mask, (kernel, kernel), generator.uniform(5, 45) * unit)
    soft: Array = cv2.resize(mask, (side, side), interpolation=cv2.INTER_LINEAR)
    most = float(soft.max())
    if most == 0 or float(soft.mean()) < _LEAST_AREA * most:
        return None
    return soft / most


def _bend(mask: Array, generator: np.random.Generator) -> Array:
    """The mask on rubber: every pixel is moved a little, neighbours alike (Simard et al., 2003)."""
    side = mask.shape[0]
    coarse = max(4, side // 10)
    moves: Array = generator.standard_normal((coarse, coarse, 2), np.float32)
    moves *= np.float32(generator.uniform(0.5, 4.0) * side / _SIDE)
    moves = cv2.resize(moves, (side, side), interpolation=cv2.INTER_CUBIC)
    grid = np.arange(side, dtype=np.float32)
    x, y = moves[..., 0] + grid, moves[..., 1] + grid[:, None]
    return cv2.remap(mask, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
