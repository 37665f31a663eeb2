"""How well scores rank the images of a class above the others, whatever the threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from vfm.metrics.intervals import bootstrap

FloatArray = npt.NDArray[np.float64]
Curve = list[tuple[float, float]]

_MAX_POINTS = 400
# Samples times classes times resamples: about a second of sums.
_BUDGET = 4e7
_LEAST_RESAMPLES, _MOST_RESAMPLES = 200, 1000


class Ranking:
    """One class's scores, sorted once; every figure then follows from how often each image counts."""

    def __init__(self, scores: npt.ArrayLike, positive: npt.ArrayLike) -> None:
        """Sort.

        Args:
            scores: float [N]; only their order matters.
            positive: bool [N], whether the image belongs to the class.
        """
        values = np.asarray(scores, dtype=np.float64)
        self._order = np.argsort(-values, kind="stable")
        self._positive = np.asarray(positive, dtype=bool)[self._order]
        ranked = values[self._order]
        # Images of equal score are above a threshold together: only the last of a run is an operating point.
        self._ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))

    def auroc(self, counts: npt.ArrayLike) -> FloatArray:
        """Area under the ROC curve, [B]; ties count a half, NaN without positives or negatives.

        Args:
            counts: int [B, N], how often each image counts.
        """
        hits, alarms = self._above(counts)
        steps = np.diff(alarms, axis=1, prepend=0.0)
        before = hits - np.diff(hits, axis=1, prepend=0.0)
        area = (steps * (hits + before) / 2).sum(axis=1)
        return _ratio(area, hits[:, -1] * alarms[:, -1])

    def average_precision(self, counts: npt.ArrayLike) -> FloatArray:
        """Mean precision at the rank of each positive, [B]; NaN without positives.

        Args:
            counts: int [B, N], how often each image counts.
        """
        hits, alarms = self._above(counts)
        steps = np.diff(hits, axis=1, prepend=0.0)
        precision = hits / np.maximum(hits + alarms, 1)
        return _ratio((steps * precision).sum(axis=1), hits[:, -1])

    def to_dict(self) -> dict[str, float | None]:
        """`average_precision` and `auroc`, None where not defined, ready for JSON."""
        figures = {
            "average_precision": self.average_precision(self._once())[0],
            "auroc": self.auroc(self._once())[0],
        }
        return {k: float(v) if np.isfinite(v) else None for k, v in figures.items()}

    def roc_curve(self) -> Curve:
        """Points (false positive rate, true positive rate) from (0, 0) to (1, 1)."""
        hits, alarms = (np.append(0.0, side[0]) for side in self._above(self._once()))
        return _thinned(alarms / max(alarms[-1], 1), hits / max(hits[-1], 1))

    def pr_curve(self) -> Curve:
        """Points (recall, precision), from the highest score down."""
        hits, alarms = (side[0] for side in self._above(self._once()))
        return _thinned(hits / max(hits[-1], 1), hits / (hits + alarms))

    def _once(self) -> npt.NDArray[np.int64]:
        return np.ones((1, len(self._order)), dtype=np.int64)

    def _above(self, counts: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Positives and negatives at or above each threshold, each [B, thresholds]."""
        ranked = np.asarray(counts)[:, self._order]
        hits = np.cumsum(ranked * self._positive, axis=1, dtype=np.float64)[:, self._ends]
        every = np.cumsum(ranked, axis=1, dtype=np.float64)[:, self._ends]
        return hits, every - hits


def class_rankings(scores: npt.ArrayLike, positive: npt.ArrayLike) -> list[Ranking]:
    """A ranking of each class.

    Args:
        scores: float [N, C].
        positive: bool [N, C].
    """
    columns = zip(np.asarray(scores).T, np.asarray(positive).T, strict=True)
    return [Ranking(column, truth) for column, truth in columns]


def mean_over_classes(
    method: Callable[[Ranking, npt.ArrayLike], FloatArray], rankings: Sequence[Ranking]
) -> Callable[[npt.ArrayLike], FloatArray]:
    """A statistic of counts [B, N]: the mean over the classes for which a figure is defined, [B].

    Args:
        method: `Ranking.auroc` or `Ranking.average_precision`.
        rankings: Of the classes.
    """

    def statistic(counts: npt.ArrayLike) -> FloatArray:
        total = np.zeros(len(np.asarray(counts)))
        defined = np.zeros_like(total)
        for ranking in rankings:
            values = method(ranking, counts)
            total += np.nan_to_num(values)
            defined += np.isfinite(values)
        return _ratio(total, defined)

    return statistic


def figure(
    statistic: Callable[[npt.ArrayLike], FloatArray],
    shape: tuple[int, int],
    seed: int,
    level: float,
) -> dict[str, float | None]:
    """A figure with its bootstrap interval, ready for JSON; None where it is not defined.

    Large data takes fewer resamples, and very large data none: the interval is then None, and would be narrow.

    Args:
        statistic: Of counts [B, N].
        shape: Number of samples N and of classes C.
        seed: Of the bootstrap.
        level: Share of the resampled figures inside the interval.
    """
    num_samples = shape[0]
    ones = np.ones(num_samples, dtype=np.int64)
    value = float(statistic(ones[None])[0])
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None}
    affordable = int(_BUDGET / (shape[0] * shape[1]))
    if affordable < _LEAST_RESAMPLES / 5:
        return {"value": value, "low": None, "high": None}
    resamples = min(_MOST_RESAMPLES, max(_LEAST_RESAMPLES, affordable))
    interval = bootstrap(
        _defined(statistic, value), ones, num_resamples=resamples, level=level, seed=seed
    )
    return {"value": value, "low": interval.low, "high": interval.high}


def _defined(
    statistic: Callable[[npt.ArrayLike], FloatArray], value: float
) -> Callable[[npt.NDArray[np.int64]], FloatArray]:
    """A resample in which nothing is defined (a rare class not drawn) counts as the data itself."""
    return lambda counts: np.nan_to_num(statistic(counts), nan=value)


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    safe = np.where(denominator > 0, denominator, 1.0)
    return np.where(denominator > 0, numerator / safe, np.nan)


def _thinned(x: FloatArray, y: FloatArray) -> Curve:
    picks = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MAX_POINTS)).round().astype(int))
    return [(float(x[i]), float(y[i])) for i in picks]
