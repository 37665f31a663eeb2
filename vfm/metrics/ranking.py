"""Ranking metrics of a class: AUROC, average precision, and the curves of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vfm.metrics.intervals import compute_interval

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Statistic = Callable[[npt.ArrayLike], FloatArray]
"""A metric as a function of how often each sample counts, [B, N] to [B]."""
Metric = dict[str, float | None]
"""`value`, and `low` and `high` of its interval."""
Curve = list[tuple[float, float]]

_MAX_POINTS = 400
# Samples times classes times resamples, about 10 ns each: two seconds. A draw costs as much as five classes.
_BUDGET, _DRAW = 2e8, 5
_BLOCK = 2**17
_LEAST_RESAMPLES, _MOST_RESAMPLES = 200, 1000


class Ranking:
    """One class's scores, sorted once; every metric then follows from how often each image counts."""

    def __init__(self, scores: npt.ArrayLike, positive: npt.ArrayLike) -> None:
        """Sort.

        Args:
            scores: float [N]; only their order matters.
            positive: bool [N], whether the image belongs to the class.
        """
        values = np.asarray(scores, dtype=np.float64)
        # 32 bits: with many classes the orders are the largest thing in memory.
        self._order = np.argsort(-values, kind="stable").astype(np.int32)
        self._positive = np.asarray(positive, dtype=bool)[self._order]
        ranked = values[self._order]
        # Images of equal score are above a threshold together: only the last of a run is an operating point.
        self._ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)).astype(np.int32)
        positions = np.flatnonzero(self._positive)
        self._hits = self._order[positions]
        # The runs that hold a positive: the others add nothing to either area, and a rare class is in few.
        self._runs, self._first = np.unique(
            np.searchsorted(self._ends, positions), return_index=True
        )

    def auroc(self, counts: npt.ArrayLike) -> FloatArray:
        """Area under the ROC curve, [B], by how often images count, int [B, N]; a tie is a half, NaN without a side."""
        hits, before, through = self._count_runs(counts)
        positives = hits.sum(axis=1)
        negatives = np.asarray(counts).sum(axis=1) - positives
        # Ahead of a run are the earlier runs and, for a half, the negatives of its own.
        ahead = before - (np.cumsum(hits, axis=1) - hits) + (through - before - hits) / 2
        return 1 - _divide((hits * ahead).sum(axis=1), positives * negatives)

    def average_precision(self, counts: npt.ArrayLike) -> FloatArray:
        """Mean precision at the rank of each positive, [B], by how often images count, int [B, N]; NaN without any."""
        hits, _, through = self._count_runs(counts)
        precision = np.cumsum(hits, axis=1) / np.maximum(through, 1)
        return _divide((hits * precision).sum(axis=1), hits.sum(axis=1))

    def to_dict(self) -> dict[str, float | None]:
        """`average_precision` and `auroc`, None where not defined, ready for JSON."""
        once = np.ones((1, len(self._order)), dtype=np.int64)
        metrics = {"average_precision": self.average_precision(once), "auroc": self.auroc(once)}
        return {k: float(v[0]) if np.isfinite(v[0]) else None for k, v in metrics.items()}

    def roc_curve(self) -> Curve:
        """Points (false positive rate, true positive rate) from (0, 0) to (1, 1)."""
        hits, alarms = (np.append(0.0, side) for side in self._count_above())
        return _thin_out(alarms / max(alarms[-1], 1), hits / max(hits[-1], 1))

    def pr_curve(self) -> Curve:
        """Points (recall, precision), from the highest score down to a recall of 1.

        The first is at a recall of 0, with the precision of the highest score.
        """
        hits, alarms = self._count_above()
        # Thresholds below the last positive only add a vertical line down to the fraction of positives.
        last = int(np.searchsorted(hits, hits[-1])) + 1
        recall, precision = hits / max(hits[-1], 1), hits / (hits + alarms)
        return _thin_out(np.append(0.0, recall[:last]), np.append(precision[0], precision[:last]))

    def _count_above(self) -> tuple[FloatArray, FloatArray]:
        """Positives and negatives at or above each threshold."""
        hits = np.cumsum(self._positive, dtype=np.float64)[self._ends]
        return hits, self._ends + 1 - hits

    def _count_runs(self, counts: npt.ArrayLike) -> tuple[IntArray, IntArray, IntArray]:
        """For each run that holds a positive: its positives, images before it and through it, [B, runs]."""
        drawn = np.asarray(counts)
        hits = np.add.reduceat(drawn[:, self._hits], self._first, axis=1)
        summed = np.cumsum(np.take(drawn, self._order, axis=1), axis=1)
        begins = np.append(0, self._ends + 1)[self._runs]
        before = np.where(begins > 0, summed[:, begins - 1], 0)
        return hits, before, summed[:, self._ends[self._runs]]


def rank_classes(scores: npt.ArrayLike, positive: npt.ArrayLike) -> list[Ranking]:
    """A ranking of each class, from float scores [N, C] and whether each image belongs to it, bool [N, C]."""
    columns = zip(np.asarray(scores).T, np.asarray(positive).T, strict=True)
    return [Ranking(column, truth) for column, truth in columns]


def average_over_classes(
    method: Callable[[Ranking, npt.ArrayLike], FloatArray], rankings: Sequence[Ranking]
) -> Statistic:
    """The mean of a metric, a method of `Ranking`, over the classes for which it is defined."""

    def average(counts: npt.ArrayLike) -> FloatArray:
        total = np.zeros(len(np.asarray(counts)))
        defined = np.zeros_like(total)
        for ranking in rankings:
            values = method(ranking, counts)
            total += np.nan_to_num(values)
            defined += np.isfinite(values)
        return _divide(total, defined)

    return average


def estimate_metric(statistic: Statistic, shape: tuple[int, ...], seed: int) -> Metric:
    """A metric with its bootstrap interval, ready for JSON; None where it is not defined.

    Large data takes fewer resamples, and very large data none: the interval is then None, and would be narrow.

    Args:
        statistic: The metric by how often each of the N samples counts, [B, N] to [B].
        shape: Number of samples N and of classes C.
        seed: Seed of the bootstrap.
    """
    num_samples, num_classes = shape
    ones = np.ones(num_samples, dtype=np.int64)
    value = float(statistic(ones[None])[0])
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None}
    affordable = int(_BUDGET / (num_samples * (num_classes + _DRAW)))
    if affordable < _LEAST_RESAMPLES / 2:
        return {"value": value, "low": None, "high": None}

    def compute_blockwise(counts: IntArray) -> FloatArray:
        # In blocks that stay in the processor's cache.
        size = max(1, _BLOCK // num_samples)
        blocks = [statistic(counts[i : i + size]) for i in range(0, len(counts), size)]
        # A resample in which nothing is defined (a rare class not drawn) counts as the data itself.
        return np.nan_to_num(np.concatenate(blocks), nan=value)

    resamples = min(_MOST_RESAMPLES, max(_LEAST_RESAMPLES, affordable))
    interval = compute_interval(compute_blockwise, ones, num_resamples=resamples, seed=seed)
    return {"value": value, "low": interval.low, "high": interval.high}


def _divide(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> FloatArray:
    safe = np.where(denominator > 0, denominator, 1.0)
    return np.where(denominator > 0, numerator / safe, np.nan)


def _thin_out(x: FloatArray, y: FloatArray) -> Curve:
    """Points evenly spaced along the curve: evenly in rank, a rare class would lose its shape."""
    path = np.append(0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    marks = np.linspace(0, path[-1], _MAX_POINTS)
    picks = np.unique(np.minimum(np.searchsorted(path, marks), len(x) - 1))
    return [(float(x[i]), float(y[i])) for i in picks]
