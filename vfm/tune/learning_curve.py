"""Learning curve of a frozen head over subsets of the images, and what twice the images would be worth."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vfm.data.auto import draw_indices
from vfm.metrics import Interval
from vfm.training.selection import build_statistic, draw_counts
from vfm.tune.frozen import PoolHeads

_FRACTIONS = (0.25, 0.5, 1.0)
_NUM_DRAWS, _NUM_RESAMPLES = 3, 500


class LearningCurve(NamedTuple):
    """Scores of a frozen head by how many images it learned from, on images that it did not learn from."""

    points: list[tuple[int, float]]
    """(images learned from, metric), measured."""
    expected: list[tuple[int, float]]
    """The same for all images and for twice as many, extrapolated."""
    gain: Interval
    """What twice the images would add to the metric, extrapolated."""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "measured": [list(point) for point in self.points],
            "extrapolated": [list(point) for point in self.expected],
            "twice_the_images": self.gain.to_dict(),
        }


def measure_learning_curve(frozen: PoolHeads) -> LearningCurve | None:
    """Fit the best single frozen head on a quarter, a half and all of each fold's training images, class by class.

    The error is extrapolated as a power of the number of images (Hestness et al., 2017). None where a quarter of the
    images has no two classes.
    """
    pool, head = frozen.pool, frozen.heads[0]
    target, records = pool.target, pool.records
    num_images, seed = len(target), pool.data.seed
    logits = np.zeros((len(_FRACTIONS), _NUM_DRAWS, num_images, len(pool.data.labels)), np.float32)
    sizes = np.zeros(len(_FRACTIONS))
    for draw in range(_NUM_DRAWS):
        folds = pool.draw_folds(frozen.num_folds, seed + draw)
        for fold in range(int(folds.max()) + 1):
            train, judged = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            for i, fraction in enumerate(_FRACTIONS):
                number = round(fraction * len(train))
                part = train[draw_indices([records[j] for j in train], number, seed + draw)]
                if (target[part].max(axis=0) == target[part].min(axis=0)).all():
                    return None
                logits[i, draw, judged] = frozen.fit_and_score(head, part, judged)
                sizes[i] += number / (_NUM_DRAWS * (folds.max() + 1))
    statistics = [build_statistic(list(draws), target) for draws in logits]
    counts = draw_counts(num_images, pool.keys, _NUM_RESAMPLES, seed)
    counts = np.concatenate([np.ones((1, num_images), np.int64), counts])
    values = np.stack([statistic(counts) for statistic in statistics])
    expected = extrapolate(sizes, values, np.array([num_images, 2 * num_images]), 1 / num_images)
    gains = expected[1] - expected[0]
    low, high = np.quantile(gains[1:], [0.025, 0.975])
    return LearningCurve(
        [(round(size), float(value)) for size, value in zip(sizes, values[:, 0], strict=True)],
        [(num_images, float(expected[0, 0])), (2 * num_images, float(expected[1, 0]))],
        Interval(float(gains[0]), float(low), float(high)),
    )


def extrapolate(
    sizes: NDArray[np.float64],
    values: NDArray[np.float64],
    targets: NDArray[np.int64],
    least_error: float,
) -> NDArray[np.float64]:
    """Return metrics at other numbers of images, [T, B], from those at some, [S] and [S, B].

    The logarithm of the error is a straight line over that of the number of images, by least squares, and does not
    rise.

    Args:
        sizes: Numbers of images.
        values: Metrics between 0 and 1.
        targets: Numbers of images to extrapolate to.
        least_error: Error below which none can be measured.
    """
    x = np.log(sizes) - np.log(sizes).mean()
    y = np.log(np.maximum(1 - values, least_error))
    slope = np.minimum((x @ (y - y.mean(axis=0))) / (x @ x), 0.0)
    distance = np.log(targets) - np.log(sizes).mean()
    metrics: NDArray[np.float64] = 1 - np.exp(y.mean(axis=0) + distance[:, None] * slope)
    return metrics
