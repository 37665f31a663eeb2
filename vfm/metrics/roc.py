"""ROC metrics: equal error rate, TPR at a low FPR and partial AUC, with intervals over clusters of samples."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from vfm.metrics.ranking import FloatArray, IntArray, Metric, Ranking, Statistic, estimate_metric

FALSE_ALARM_RATES = (0.001, 0.01, 0.05)
PARTIAL = 0.1
"""The partial area reaches to this fraction of false alarms."""
# Numbers of resampled counts held at once.
_BLOCK = 2**20
# With more clusters, comparing every two takes more memory than drawing takes time.
_MOST_CLUSTERS = 2000

# 0.01 * 300 is a little less than 3 in binary: a rate that is met exactly counts as met.
_SLACK = 1e-9


class Roc(Ranking):
    """A ROC curve, sorted once; the metrics of any number of resamples follow.

    All metrics are NaN where a resample holds no positive or no negative.
    """

    def __init__(self, scores: npt.ArrayLike, positive: npt.ArrayLike) -> None:
        """Sort.

        Args:
            scores: float [N], higher for positives.
            positive: bool [N], the true labels.
        """
        super().__init__(scores, positive)
        self._thresholds = np.asarray(scores, dtype=np.float64)[self._order][self._ends]

    def compute_rates(self, counts: npt.ArrayLike | None = None) -> tuple[FloatArray, FloatArray]:
        """False alarms and hits at each of K thresholds, [B, K + 1] each, by how often samples count, int [B, N]."""
        drawn = np.ones((1, len(self._order))) if counts is None else np.asarray(counts, np.float64)
        drawn = np.take(drawn, self._order, axis=1)
        hits = np.cumsum(drawn * self._positive, axis=1)[:, self._ends]
        alarms = np.cumsum(drawn, axis=1)[:, self._ends] - hits
        start = np.zeros((len(drawn), 1))
        with np.errstate(invalid="ignore"):
            # Where a side is missing its rates are 0 / 0, which makes every metric NaN.
            false_alarms, found_rates = (
                np.concatenate([start, part], axis=1) / part[:, -1:] for part in (alarms, hits)
            )
        return false_alarms, found_rates

    def eer(self, counts: npt.ArrayLike | None = None) -> FloatArray:
        """Equal error rate, [B]: where the curve, taken as straight lines, meets x = 1 - y."""
        false_alarms, hits = self.compute_rates(counts)
        return _interpolate(false_alarms, *_find_crossing(false_alarms, hits))

    def eer_threshold(self) -> float:
        """The score at which both error rates are equal, taken as a straight line between two scores."""
        # Above the highest score nothing is called positive; the curve starts there.
        thresholds = np.append(self._thresholds[0], self._thresholds)[None]
        return float(_interpolate(thresholds, *_find_crossing(*self.compute_rates()))[0])

    def tpr_at_fpr(self, rate: float, counts: npt.ArrayLike | None = None) -> FloatArray:
        """Fraction of positives at the lowest threshold with at most this fraction of false alarms, [B].

        Only thresholds that the scores realise count: between two of them nothing is interpolated, so with
        fewer than 1 / rate negatives no false alarm at all is allowed.

        Args:
            rate: Fraction of the negatives, 0 to 1.
            counts: int [B, N], how often each sample counts; once each by default.
        """
        false_alarms, hits = self.compute_rates(counts)
        allowed = false_alarms <= rate * (1 + _SLACK)
        last = np.maximum(allowed.sum(axis=1, keepdims=True) - 1, 0)
        # Without positives the hits are NaN, without negatives the false alarms: the sum is NaN in both cases.
        return np.take_along_axis(hits, last, axis=1)[:, 0] + 0 * false_alarms[:, -1]

    def partial_auc(self, limit: float, counts: npt.ArrayLike | None = None) -> FloatArray:
        """Area under the curve up to a fraction of false alarms, [B], scaled so that chance is 0.5 and the best 1.

        Reference: McClish, Analyzing a portion of the ROC curve, 1989.

        Args:
            limit: Fraction of the negatives, above 0 and at most 1.
            counts: int [B, N], how often each sample counts; once each by default.
        """
        x, y = self.compute_rates(counts)
        begin, end = np.minimum(x[:, :-1], limit), np.minimum(x[:, 1:], limit)
        width = x[:, 1:] - x[:, :-1]
        part = np.divide(end - x[:, :-1], width, out=np.zeros_like(width), where=width > 0)
        height = y[:, :-1] + np.clip(part, 0, 1) * (y[:, 1:] - y[:, :-1])
        area = ((end - begin) * (y[:, :-1] + height) / 2).sum(axis=1)
        chance = limit**2 / 2
        scaled: FloatArray = 0.5 * (1 + (area - chance) / (limit - chance))
        return scaled


class ClusteredScores:
    """Logits with their truth and the identities that they show, and the metrics of a binary classifier.

    Intervals are of a cluster bootstrap: people are drawn, with all that shows them, since two videos of a person
    are not independent. Metrics are None where there is only one class.
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
            logits: float [N], higher for positives.
            positive: bool [N], the true labels.
            clusters: int [N], the connected identities of each, from 0.
            num_clusters: Connected identities of the whole split.
            seed: Seed of the bootstrap.
        """
        self._logits = np.asarray(logits, dtype=np.float64)
        self._positive = np.asarray(positive, dtype=bool)
        self.clusters = np.asarray(clusters, dtype=np.int64)
        self.num_clusters = num_clusters
        self.num_positives = int(self._positive.sum())
        self.num_negatives = len(self._positive) - self.num_positives
        self._roc = Roc(self._logits, self._positive)
        self._seed = seed

    @property
    def has_both(self) -> bool:
        """Whether there are both classes."""
        return self.num_positives > 0 and self.num_negatives > 0

    def estimate_auc(self) -> Metric:
        """Area under the ROC curve, with its interval."""
        return self.estimate(self.auc)

    def estimate_all(self) -> dict[str, Any]:
        """Every metric, ready for JSON: `average_precision` is of the positives; its chance level is `prevalence`."""
        of_negatives = Ranking(-self._logits, ~self._positive).average_precision
        average, average_real = (
            self.estimate(self._resample_clusters(method))
            for method in (self._roc.average_precision, of_negatives)
        )
        pair = (average["value"], average_real["value"])
        return {
            "auc": self.estimate_auc(),
            "average_precision": average,
            "average_precision_real": average_real,
            "mean_average_precision": None if None in pair else sum(pair) / 2,  # type: ignore[arg-type]
            "prevalence": self.num_positives / len(self._positive),
            "eer": self.estimate(self._resample_clusters(self._roc.eer)),
            "eer_threshold": self._roc.eer_threshold() if self.has_both else None,
            "tpr_at_fpr": [
                {
                    "fpr": rate,
                    **self.estimate(self._resample_clusters(partial(self._roc.tpr_at_fpr, rate))),
                    # With none allowed the metric is that of a rate of 0: right, but pessimistic.
                    "false_alarms_allowed": int(rate * self.num_negatives * (1 + _SLACK)),
                }
                for rate in FALSE_ALARM_RATES
            ],
            "partial_auc": self.estimate(
                self._resample_clusters(partial(self._roc.partial_auc, PARTIAL))
            ),
        }

    def compute_headline(self) -> dict[str, float | None]:
        """Metrics without intervals: AUC, average precision of the positives, equal error rate, TPR at 1 % FPR."""
        if not self.has_both:
            return dict.fromkeys(("auc", "average_precision", "eer", "tpr_at_fpr_0.01"))
        areas = self._roc.to_dict()
        return {
            "auc": areas["auroc"],
            "average_precision": areas["average_precision"],
            "eer": float(self._roc.eer()[0]),
            "tpr_at_fpr_0.01": float(self._roc.tpr_at_fpr(0.01)[0]),
        }

    @cached_property
    def auc(self) -> Statistic:
        """The area under the ROC curve as a function of how often each cluster was drawn."""
        if self.num_clusters > min(_MOST_CLUSTERS, len(self.clusters) / 2):
            return self._resample_clusters(self._roc.auroc)
        return _compare_clusters(self._logits, self._positive, self.clusters, self.num_clusters)

    def _resample_clusters(self, method: Statistic) -> Statistic:
        """A metric as a function of how often each cluster was drawn, int [B, clusters], in place of each sample."""
        rows = max(1, _BLOCK // len(self.clusters))

        def compute(counts: npt.ArrayLike) -> FloatArray:
            drawn = np.asarray(counts)
            parts = [
                method(drawn[i : i + rows][:, self.clusters]) for i in range(0, len(drawn), rows)
            ]
            return np.concatenate(parts)

        return compute

    def estimate(self, statistic: Statistic) -> Metric:
        """A metric of how often each cluster was drawn, [B, clusters] to [B], for all data and with its interval."""
        size = -(-len(self.clusters) // self.num_clusters)
        metric = estimate_metric(statistic, (self.num_clusters, size), self._seed)
        if self.num_clusters == 1:
            # One person, drawn again and again, says nothing of others.
            return metric | {"low": None, "high": None}
        return metric


def _compare_clusters(
    logits: FloatArray, positive: npt.NDArray[np.bool_], clusters: IntArray, number: int
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

    def compute_area(counts: npt.ArrayLike) -> FloatArray:
        drawn = np.asarray(counts, dtype=np.float64)
        won = ((drawn @ wins) * drawn).sum(axis=1)
        pairs = (drawn @ positives_of) * (drawn @ negatives_of)
        area: FloatArray = np.divide(won, pairs, out=np.full(len(drawn), np.nan), where=pairs > 0)
        return area

    return compute_area


def _find_crossing(false_alarms: FloatArray, hits: FloatArray) -> tuple[IntArray, FloatArray]:
    """The segment, [B, 1], in which 1 - x - y changes its sign, and where along it, 0 to 1."""
    margin = 1 - false_alarms - hits
    right = np.maximum((margin > 0).sum(axis=1, keepdims=True), 1)
    # Without a side the margin is NaN everywhere, and the metric becomes so.
    right = np.minimum(right, margin.shape[1] - 1)
    before, after = (np.take_along_axis(margin, i, axis=1) for i in (right - 1, right))
    return right - 1, before / (before - after)


def _interpolate(values: FloatArray, left: IntArray, fraction: FloatArray) -> FloatArray:
    low, high = (np.take_along_axis(values, i, axis=1) for i in (left, left + 1))
    return np.asarray((low + fraction * (high - low))[:, 0], dtype=np.float64)
