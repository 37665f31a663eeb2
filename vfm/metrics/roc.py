"""Error rates at every threshold: equal errors, recall at few false alarms, area at the strict end."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vfm.metrics.ranking import Ranking, figure

FloatArray = npt.NDArray[np.float64]
Figure = dict[str, float | None]
"""`value`, and `low` and `high` of its interval."""
Statistic = Callable[[npt.ArrayLike], FloatArray]

FALSE_ALARM_RATES = (0.001, 0.01, 0.05)
PARTIAL = 0.1
"""The partial area reaches to this share of false alarms."""
LEVEL = 0.95
"""Of the intervals."""
# Numbers of resampled counts held at once.
_BLOCK = 2**20
# Of more, comparing every two takes more memory than drawing takes time.
_MOST_CLUSTERS = 2000

# 0.01 * 300 is a little less than 3 in binary: a rate that is met exactly counts as met.
_SLACK = 1e-9


class Rates(NamedTuple):
    """Points of ROC curves from (0, 0) to (1, 1), with K thresholds and B resamples."""

    false_alarms: FloatArray
    """[B, K + 1], share of the negatives at or above each threshold."""
    hits: FloatArray
    """[B, K + 1], share of the positives at or above each threshold."""
    num_negatives: FloatArray
    """[B, 1]."""


class Roc:
    """Scores sorted once; the figures of any number of resamples follow.

    All figures are NaN where a resample holds no positive or no negative.
    """

    def __init__(self, scores: npt.ArrayLike, positive: npt.ArrayLike) -> None:
        """Sort.

        Args:
            scores: float [N], higher for positives.
            positive: bool [N].
        """
        values = np.asarray(scores, dtype=np.float64)
        self._order = np.argsort(-values, kind="stable")
        self._positive = np.asarray(positive, dtype=bool)[self._order]
        ranked = values[self._order]
        # Equal scores pass a threshold together: only the last of a run is an operating point.
        self._ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        self._thresholds = ranked[self._ends]
        self._num = len(values)

    def rates(self, counts: npt.ArrayLike | None = None) -> Rates:
        """Error rates at every threshold.

        Args:
            counts: int [B, N], how often each sample counts; once each by default.
        """
        drawn = np.ones((1, self._num)) if counts is None else np.asarray(counts, dtype=np.float64)
        drawn = np.take(drawn, self._order, axis=1)
        both = np.cumsum(drawn, axis=1)[:, self._ends]
        hits = np.cumsum(drawn * self._positive, axis=1)[:, self._ends]
        alarms = both - hits
        with np.errstate(invalid="ignore"):
            rates = [part / part[:, -1:] for part in (alarms, hits)]
        start = np.zeros((len(drawn), 1))
        # Where a side is missing its rates are 0 / 0, which makes every figure NaN.
        first, second = (np.concatenate([start + part[:, -1:] * 0, part], axis=1) for part in rates)
        return Rates(first, second, alarms[:, -1:])

    def eer(self, counts: npt.ArrayLike | None = None) -> FloatArray:
        """Equal error rate, [B]: where the curve, taken as straight lines, meets x = 1 - y."""
        rates = self.rates(counts)
        left, share = _crossing(rates)
        return _between(rates.false_alarms, left, share)

    def eer_threshold(self) -> float:
        """The score at which both error rates are equal, taken as a straight line between two scores."""
        left, share = _crossing(self.rates())
        # Above the highest score nothing is called positive; the curve starts there.
        thresholds = np.append(self._thresholds[0], self._thresholds)[None]
        return float(_between(thresholds, left, share)[0])

    def hits_at(self, rate: float, counts: npt.ArrayLike | None = None) -> FloatArray:
        """Share of positives found at the lowest threshold with at most this share of false alarms, [B].

        Only thresholds that the scores realise count: between two of them nothing is interpolated, so with
        fewer than 1 / rate negatives no false alarm at all is allowed.

        Args:
            rate: Share of the negatives, 0 to 1.
            counts: int [B, N], how often each sample counts; once each by default.
        """
        rates = self.rates(counts)
        allowed = rates.false_alarms <= rate * (1 + _SLACK)
        last = np.maximum(allowed.sum(axis=1, keepdims=True) - 1, 0)
        found = np.take_along_axis(rates.hits, last, axis=1)[:, 0]
        # A missing side is NaN in one of the two.
        return found + 0 * rates.false_alarms[:, -1]

    def partial_area(self, limit: float, counts: npt.ArrayLike | None = None) -> FloatArray:
        """Area under the curve up to a share of false alarms, [B], scaled so that chance is 0.5 and the best 1.

        Reference: McClish, Analyzing a portion of the ROC curve, 1989.

        Args:
            limit: Share of the negatives, above 0 and at most 1.
            counts: int [B, N], how often each sample counts; once each by default.
        """
        x, y, _ = self.rates(counts)
        begin, end = np.minimum(x[:, :-1], limit), np.minimum(x[:, 1:], limit)
        width = x[:, 1:] - x[:, :-1]
        share = np.divide(end - x[:, :-1], width, out=np.zeros_like(width), where=width > 0)
        height = y[:, :-1] + np.clip(share, 0, 1) * (y[:, 1:] - y[:, :-1])
        area = ((end - begin) * (y[:, :-1] + height) / 2).sum(axis=1)
        chance = limit**2 / 2
        scaled: FloatArray = 0.5 * (1 + (area - chance) / (limit - chance))
        return scaled


class Scores:
    """Logits with their truth and the identities that they show, and the metrics of a binary classifier.

    Intervals are of a cluster bootstrap: people are drawn, with all that shows them, since two videos of a person
    are not independent. Figures are None where there are only one class.
    """

    def __init__(
        self,
        logits: npt.ArrayLike,
        positive: npt.ArrayLike,
        clusters: npt.ArrayLike,
        num_clusters: int,
        seed: int = 0,
    ) -> None:
        """Sort.

        Args:
            logits: float [N].
            positive: bool [N].
            clusters: int [N], the connected identities of each, from 0.
            num_clusters: Connected identities of the whole split.
            seed: Of the bootstrap.
        """
        self._logits = np.asarray(logits, dtype=np.float64)
        self._positive = np.asarray(positive, dtype=bool)
        self.clusters = np.asarray(clusters, dtype=np.int64)
        self.num_clusters = num_clusters
        self.num_positives = int(self._positive.sum())
        self.num_negatives = len(self._positive) - self.num_positives
        self.ranking = Ranking(self._logits, self._positive)
        self._of_negatives = Ranking(-self._logits, ~self._positive)
        self.roc = Roc(self._logits, self._positive)
        self._seed = seed

    @property
    def both(self) -> bool:
        """Whether there are both classes."""
        return self.num_positives > 0 and self.num_negatives > 0

    def auc(self) -> Figure:
        """Area under the ROC curve, with its interval."""
        return self.interval(self.area)

    def all(self) -> dict[str, Any]:
        """Every figure, ready for JSON: `average_precision` is of the positives; its chance level is `prevalence`."""
        average = self.interval(self.statistic(self.ranking.average_precision))
        of_negatives = self.interval(self.statistic(self._of_negatives.average_precision))
        return {
            "auc": self.auc(),
            "average_precision": average,
            "average_precision_real": of_negatives,
            "mean_average_precision": _mean(average["value"], of_negatives["value"]),
            "prevalence": self.num_positives / (self.num_positives + self.num_negatives),
            "eer": self.interval(self.statistic(self.roc.eer)),
            "eer_threshold": self.roc.eer_threshold() if self.both else None,
            "tpr_at_fpr": [self._hits(rate) for rate in FALSE_ALARM_RATES],
            "partial_auc": self.interval(
                self.statistic(partial(self.roc.partial_area, PARTIAL)),
            ),
        }

    def few(self) -> dict[str, float | None]:
        """Figures without intervals: AUC, average precision of the positives, equal error rate, TPR at 1 % FPR."""
        if not self.both:
            return dict.fromkeys(("auc", "average_precision", "eer", "tpr_at_fpr_0.01"))
        areas = self.ranking.to_dict()
        return {
            "auc": areas["auroc"],
            "average_precision": areas["average_precision"],
            "eer": float(self.roc.eer()[0]),
            "tpr_at_fpr_0.01": float(self.roc.hits_at(0.01)[0]),
        }

    @cached_property
    def area(self) -> Statistic:
        """The area under the ROC curve as a function of how often each cluster was drawn."""
        if self.num_clusters > min(_MOST_CLUSTERS, len(self.clusters) / 2):
            return self.statistic(self.ranking.auroc)
        return _area_of_clusters(self._logits, self._positive, self.clusters, self.num_clusters)

    def statistic(self, method: Statistic) -> Statistic:
        """A figure as a function of how often each cluster was drawn, int [B, clusters].

        Args:
            method: Of `ranking` or `roc`: takes how often each sample counts.
        """
        rows = max(1, _BLOCK // len(self.clusters))

        def of_clusters(counts: npt.ArrayLike) -> FloatArray:
            drawn = np.asarray(counts)
            parts = [
                method(drawn[i : i + rows][:, self.clusters]) for i in range(0, len(drawn), rows)
            ]
            return np.concatenate(parts)

        return of_clusters

    def interval(self, statistic: Statistic) -> Figure:
        """A figure of all data with its bootstrap interval.

        Args:
            statistic: As `statistic` gives it.
        """
        size = -(-len(self.clusters) // self.num_clusters)
        found = figure(statistic, (self.num_clusters, size), self._seed, LEVEL)
        if self.num_clusters == 1:
            # One person, drawn again and again, says nothing of others.
            return found | {"low": None, "high": None}
        return found

    def _hits(self, rate: float) -> dict[str, Any]:
        found = self.interval(self.statistic(partial(self.roc.hits_at, rate)))
        allowed = int(rate * self.num_negatives * (1 + 1e-9))
        # With none allowed the figure is that of a rate of 0: right, but pessimistic.
        return {"fpr": rate, **found, "false_alarms_allowed": allowed}


def _area_of_clusters(
    logits: FloatArray,
    positive: npt.NDArray[np.bool_],
    clusters: npt.NDArray[np.int64],
    number: int,
) -> Statistic:
    """The area under the ROC curve from how often the positives of each cluster beat the negatives of each other.

    With many frames a person this takes a fraction of the time of drawing frames.
    """
    order = np.argsort(logits[~positive], kind="stable")
    negatives, negative_clusters = logits[~positive][order], clusters[~positive][order]
    # A tie counts a half: the mean of the negatives below, and of those below or equal.
    sides = [np.searchsorted(negatives, logits[positive], side) for side in ("left", "right")]
    positives_of, negatives_of = (
        np.bincount(clusters[side], minlength=number) for side in (positive, ~positive)
    )
    wins = np.zeros((number, number))
    for cluster in np.flatnonzero(negatives_of):
        below = np.append(0, np.cumsum(negative_clusters == cluster))
        beaten = (below[sides[0]] + below[sides[1]]) / 2
        wins[:, cluster] = np.bincount(clusters[positive], weights=beaten, minlength=number)

    def area(counts: npt.ArrayLike) -> FloatArray:
        drawn = np.asarray(counts, dtype=np.float64)
        won = ((drawn @ wins) * drawn).sum(axis=1)
        pairs = (drawn @ positives_of) * (drawn @ negatives_of)
        found: FloatArray = np.divide(won, pairs, out=np.full(len(drawn), np.nan), where=pairs > 0)
        return found

    return area


def _mean(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else (first + second) / 2


def _crossing(rates: Rates) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """The segment, [B, 1], in which 1 - x - y changes its sign, and where along it, 0 to 1."""
    margin = 1 - rates.false_alarms - rates.hits
    right = np.maximum((margin > 0).sum(axis=1, keepdims=True), 1)
    # Without a side the margin is NaN everywhere, and the figure becomes so.
    right = np.minimum(right, margin.shape[1] - 1)
    before, after = (np.take_along_axis(margin, i, axis=1) for i in (right - 1, right))
    return right - 1, before / (before - after)


def _between(
    values: npt.NDArray[Any], left: npt.NDArray[np.int64], share: FloatArray
) -> FloatArray:
    low, high = (np.take_along_axis(values, i, axis=1) for i in (left, left + 1))
    return np.asarray((low + share * (high - low))[:, 0], dtype=np.float64)
