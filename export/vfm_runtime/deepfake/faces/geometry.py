"""Affine maps between an image and a square cut out of it: similarity of landmarks, warping; numpy and Pillow alone."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vfm_runtime.errors import DataError


def fit_similarity(points_from: ArrayLike, points_to: ArrayLike) -> NDArray[np.float64]:
    """Return the turn, scale and shift that bring points closest to others, [2, 3].

    Least squares in closed form (Umeyama, TPAMI 1991), which never mirrors.

    Args:
        points_from: [N, 2], two or more points that do not coincide.
        points_to: [N, 2], where they shall lie.

    Raises:
        ValueError: Shapes differ, a point is not finite, or all points coincide.
    """
    start, end = np.asarray(points_from, np.float64), np.asarray(points_to, np.float64)
    if start.shape != end.shape or start.ndim != 2 or start.shape[1] != 2 or len(start) < 2:
        raise DataError(
            f"Points of shape {list(start.shape)} cannot be brought onto points of shape "
            f"{list(end.shape)}. Give two lists of [N, 2] with N of at least 2."
        )
    if not (np.isfinite(start).all() and np.isfinite(end).all()):
        raise DataError("A landmark is NaN or infinite. Detect the face anew.")
    center, target = start.mean(0), end.mean(0)
    spread = ((start - center) ** 2).sum()
    if spread < 1e-9:
        raise DataError("All landmarks of a face coincide. Detect the face anew.")
    u, stretch, v = np.linalg.svd((end - target).T @ (start - center))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn = (u * sign) @ v * ((stretch * sign).sum() / spread)
    return np.column_stack([turn, target - turn @ center])


def move_points(points: ArrayLike, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points, [N, 2], after an affine map, [2, 3]."""
    moved: NDArray[np.float64] = np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return moved


def invert_map(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse of an affine map, [2, 3]: of a crop's matrix, the one from crop to image."""
    back = np.linalg.inv(matrix[:, :2])
    return np.column_stack([back, -back @ matrix[:, 2]])


def warp(
    image: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    size: int,
    *,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> NDArray[np.uint8]:
    """Cut a square out of an image by an affine map; black where it leaves the image.

    Where the map shrinks more than twofold, the image is averaged down first, so fine structure
    becomes grey and not a moiré pattern.

    Args:
        image: Uint8, [height, width, 3], or [height, width] for a mask.
        matrix: [2, 3], from pixels of the image to pixels of the square.
        size: Side of the square in pixels.
        resample: `NEAREST`, `BILINEAR` or `BICUBIC`.

    Returns:
        Uint8, [size, size, 3] or [size, size].
    """
    height, width = image.shape[:2]
    back = invert_map(matrix)
    corners = move_points([(0, 0), (size, 0), (size, size), (0, size)], back)
    # Only the part that is seen, and a rim for the filter: reducing a whole frame takes longer.
    shrink = max(1, int(math.sqrt(abs(np.linalg.det(back[:, :2])))))
    rim = 4 * shrink
    low = np.clip(np.floor(corners.min(0)) - rim, 0, (width, height)).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + rim, 0, (width, height)).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    if not part.size:
        return np.zeros((size, size, *image.shape[2:]), np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(part))
    if shrink > 1:
        picture = picture.reduce(shrink)
    back[:, 2] -= low
    coefficients = tuple((back / shrink).ravel().tolist())
    cut = picture.transform((size, size), Image.Transform.AFFINE, coefficients, resample)
    return np.array(cut)
