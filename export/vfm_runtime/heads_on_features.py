"""Heads on frozen features in closed form, in numpy: nearest class mean, shrinkage LDA, and the affine map they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm_runtime.errors import DataError

FloatArray = NDArray[np.float64]
LEAST_VOTE = 1e-4
"""Fraction of votes that each class has at least, so that its logarithm is finite."""

_TINY = 1e-12
_FAR = 100.0
"""Logits that a class without images lies below the others."""


@dataclass(frozen=True, eq=False)
class AffineHead:
    """Logits as an affine map of features, which may be centered and L2-normalized first. D features, C classes."""

    weight: NDArray[Any]
    """[C, D], in 64 or 32 bits."""
    bias: FloatArray
    """[C]."""
    center: FloatArray | None = None
    """[D], subtracted from features before all else; None for zero."""
    normalizes: bool = False
    """Whether features are then divided by their L2 norm."""

    def compute_logits(self, features: ArrayLike) -> FloatArray:
        """Return logits [N, C] for features [N, D]."""
        scaled = scale_features(features, self.center, self.normalizes)
        # A weight of 32 bits stays so: of 10,000 classes the copy would take longer than the product.
        products = scaled.astype(self.weight.dtype, copy=False) @ self.weight.T
        return np.asarray(products + self.bias, np.float64)


def scale_features(features: ArrayLike, center: FloatArray | None, normalizes: bool) -> FloatArray:
    """Return features [N, D] minus a center [D], if any, and where asked for of L2 norm 1."""
    values = np.asarray(features, np.float64)
    if center is not None:
        values = values - center
    if normalizes:
        values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), _TINY)
    return values


def fit_nearest_mean(
    features: ArrayLike,
    target: ArrayLike,
    num_classes: int | None = None,
    *,
    temperature: float = 0.07,
) -> AffineHead:
    """Fit a nearest-mean classifier on centered features of norm 1 (SimpleShot; Wang et al., 2019).

    It is scikit-learn's `NearestCentroid` on such features. Of vectors of norm 1 the nearest is the most similar by
    cosine.

    Args:
        features: Embeddings, [N, D].
        target: Class of each, int [N].
        num_classes: Number of classes C; by default one more than the highest. Absent classes get the lowest logits.
        temperature: Half a squared distance is divided by it to become a logit.

    Raises:
        DataError: There are no features, or they do not go with the target.
    """
    values, classes, num_classes = _check(features, target, num_classes)
    center = values.mean(axis=0)
    scaled = scale_features(values, center, True)
    return make_mean_head(scaled, classes, num_classes, center, temperature=temperature)


def make_mean_head(
    scaled: NDArray[Any],
    classes: NDArray[np.int64],
    num_classes: int,
    center: NDArray[Any],
    *,
    temperature: float = 0.07,
) -> AffineHead:
    """Make the nearest-mean classifier of `fit_nearest_mean` of features that are scaled already, in their precision.

    Args:
        scaled: Features less their mean, of norm 1, [N, D].
        classes: Class of each, int [N].
        num_classes: Number of classes C.
        center: The mean, [D].
        temperature: Half a squared distance is divided by it to become a logit.
    """
    means = average_classes(scaled, classes, num_classes)
    bias = -0.5 * np.einsum("cd,cd->c", means, means).astype(np.float64) / temperature
    bias[np.bincount(classes, minlength=num_classes) == 0] = bias.min() - _FAR
    means /= temperature
    return AffineHead(means, bias, np.asarray(center, np.float64), True)


def fit_lda(features: ArrayLike, target: ArrayLike, num_classes: int | None = None) -> AffineHead:
    """Fit linear discriminant analysis with the covariance within classes shrunk by Ledoit and Wolf (2004).

    It is scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")`: each class has a covariance of
    its standardized features, shrunk towards a multiple of the identity, and these are averaged by frequency. Here the
    sum is kept as rows and a diagonal, so that N < D costs N x N and not D x D.

    Args:
        features: Embeddings, [N, D].
        target: Class of each, int [N].
        num_classes: Number of classes C; by default one more than the highest. Absent classes get the lowest logits.

    Raises:
        DataError: There are no features, or they do not go with the target.
    """
    values, classes, num_classes = _check(features, target, num_classes)
    means = average_classes(values, classes, num_classes)
    counts = np.bincount(classes, minlength=num_classes)
    rows, diagonal = [], np.zeros(values.shape[1])
    for k in np.flatnonzero(counts):
        residuals = values[classes == k] - means[k]
        scale = residuals.std(axis=0)
        scale[scale < 10 * np.finfo(np.float64).eps] = 1.0
        shrinkage, mean_variance = _shrink(residuals / scale)
        frequency = counts[k] / len(values)
        rows.append(residuals * np.sqrt(frequency * (1 - shrinkage) / counts[k]))
        diagonal += frequency * shrinkage * mean_variance * scale**2
    weight = _solve(np.concatenate(rows), diagonal, means)
    log_priors = np.log(np.maximum(counts, 1) / len(values))
    log_priors[counts == 0] -= _FAR
    return AffineHead(weight, log_priors - 0.5 * (weight * means).sum(axis=1))


def average_classes(
    values: NDArray[Any], classes: NDArray[np.int64], num_classes: int
) -> NDArray[Any]:
    """Return the mean [C, D] of the features of each class, zero where it has none, in their precision."""
    sums = np.zeros((num_classes, values.shape[1]), values.dtype)
    counts = np.bincount(classes, minlength=num_classes)
    # np.add.at would take several times as long.
    order = np.argsort(classes, kind="stable")
    present = np.flatnonzero(counts)
    starts = np.cumsum(counts[present]) - counts[present]
    sums[present] = np.add.reduceat(values[order], starts, axis=0)
    sums /= np.maximum(counts, 1)[:, None]
    return sums


def _shrink(centered: FloatArray) -> tuple[float, float]:
    """Return Ledoit and Wolf's shrinkage of the covariance of centered rows [n, D], and the mean variance."""
    number, width = centered.shape
    gram = centered @ centered.T
    mean_variance = float(np.trace(gram)) / (number * width)
    squared = float((gram**2).sum()) / number**2
    spread = (float((np.diag(gram) ** 2).sum()) / number - squared) / (width * number)
    distance = squared / width - mean_variance**2
    spread = min(spread, distance)
    return (0.0 if spread <= 0 else spread / distance), mean_variance


def _solve(rows: FloatArray, diagonal: FloatArray, means: FloatArray) -> FloatArray:
    """Return means [C, D] times the inverse of rows^T rows + diagonal (Woodbury's identity where rows are few)."""
    variances = diagonal + (rows**2).sum(axis=0)
    variances[variances == 0] = variances.mean() or 1.0
    diagonal = np.maximum(diagonal, 1e-6 * variances)
    if len(rows) >= rows.shape[1]:
        covariance = rows.T @ rows
        covariance[np.diag_indices_from(covariance)] += diagonal
        return np.asarray(np.linalg.solve(covariance, means.T).T, np.float64)
    scaled = rows / diagonal
    inner = np.eye(len(rows)) + scaled @ rows.T
    return means / diagonal - np.linalg.solve(inner, rows @ (means / diagonal).T).T @ scaled


def _check(
    features: ArrayLike, target: ArrayLike, num_classes: int | None
) -> tuple[FloatArray, NDArray[np.int64], int]:
    values, classes = np.asarray(features, np.float64), np.asarray(target)
    if values.ndim != 2 or len(values) == 0 or classes.shape != values.shape[:1]:
        raise DataError(
            f"Features have shape {values.shape} and their classes {classes.shape}. Give features "
            "[N, D] of one image or more, and a class for each, [N]."
        )
    if not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0:
        raise DataError(
            f"Classes are {classes.dtype} from {classes.min()}. Give integers from 0; leave out images without a label."
        )
    least = int(classes.max()) + 1
    if num_classes is not None and num_classes < least:
        raise DataError(
            f"num_classes is {num_classes}, but a class is {least - 1}. Give {least} or more."
        )
    return values, classes.astype(np.int64), num_classes or least
