"""Group comparison: metrics with clustered bootstrap intervals, exact tests of gaps, Benjamini-Hochberg, power.

Every metric is a function of how often each image counts, so that an interval, a group and a gap are the same metric
with other counts. Images of one cluster (a patient, a video, a site's camera) are drawn and permuted together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binom, hypergeom, norm, t

from vfm.metrics.intervals import Interval, compute_wilson

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LEVEL = 0.05
"""Fraction of the gaps that are called real of which no more than this may be chance."""
POWER = 0.8
"""Fraction of audits that would see the smallest visible gap."""

_NUM_RESAMPLES = 1000
_NUM_PERMUTATIONS = 2000
_CHUNK = 100
_MOST_TIMES = 20
_NODES = (np.arange(15) + 0.5) / 15


@dataclass(frozen=True, eq=False)
class RatioMetric:
    """A metric that is a ratio of two sums over N images, such as right answers over answers."""

    name: str
    numerator: Floats
    """[N], what each image adds above."""
    denominator: Floats
    """[N], what each image adds below; 0 of an image that the metric says nothing of."""
    higher_is_better: bool | None = True
    """None where neither is, as of a rate of selection."""

    @cached_property
    def counts_whole(self) -> bool:
        """Whether each image counts whole or not at all."""
        values = np.concatenate([self.numerator, self.denominator])
        return set(np.unique(values).tolist()) <= {0.0, 1.0}

    def compute(self, counts: ArrayLike) -> Floats:
        """Return the metric, [B], where image i counts `counts[b, i]` times; NaN where nothing counts."""
        weights = np.asarray(counts, np.float64)
        return _divide(weights @ self.numerator, weights @ self.denominator)


@dataclass(frozen=True, eq=False)
class CountedMetric:
    """Any other metric of N images, such as an average precision."""

    name: str
    function: Callable[[NDArray[np.int64]], Floats]
    """Maps counts, int [B, N], to the metric, [B]."""
    higher_is_better: bool | None = True
    num_resamples: int = 200
    """Draws of an interval; each takes a while."""

    def compute(self, counts: ArrayLike) -> Floats:
        """Return the metric, [B], where image i counts `counts[b, i]` times; NaN where it is not defined."""
        return self.function(np.asarray(counts, np.int64))


ImageMetric = RatioMetric | CountedMetric


def is_proportion(metric: ImageMetric) -> TypeGuard[RatioMetric]:
    """Whether a metric is a fraction of images, so that their counts have an exact test."""
    return isinstance(metric, RatioMetric) and metric.counts_whole


class Comparison(NamedTuple):
    """A metric of the images of a group beside that of all others."""

    value: Interval
    """The metric of the group, with its 95 % interval."""
    gap: Interval
    """The group's less that of all other images."""
    p_value: float
    """Probability of a gap as large by chance alone."""
    test: str
    """How it was computed."""


@dataclass(eq=False)
class ClusterSampler:
    """Draws and permutations of N images by cluster: the same for every metric and every group."""

    clusters: NDArray[np.int64]
    """[N], cluster of each image, from 0 on."""
    seed: int = 0
    """Seed of the draws."""
    num_resamples: int = _NUM_RESAMPLES
    """Draws of an interval."""
    _orders: dict[str, NDArray[np.int64]] = field(default_factory=dict, init=False)

    @classmethod
    def from_keys(
        cls, keys: Sequence[str] | None, num_images: int, seed: int = 0
    ) -> ClusterSampler:
        """Build from a key of each image; None where each image stands alone."""
        numbers = np.arange(num_images) if keys is None else np.unique(keys, return_inverse=True)[1]
        return cls(numbers.astype(np.int64), seed)

    @property
    def is_clustered(self) -> bool:
        """Whether some images belong together."""
        return self.num_clusters < len(self.clusters)

    @cached_property
    def num_clusters(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max()) + 1

    @cached_property
    def draws(self) -> NDArray[np.float32]:
        """How often each cluster is drawn, float32 [B, K]."""
        number = self.num_clusters
        generator = np.random.default_rng(self.seed)
        counts = generator.multinomial(number, np.full(number, 1 / number), self.num_resamples)
        return counts.astype(np.float32)

    @cached_property
    def permutations(self) -> NDArray[np.int32]:
        """Orders of the clusters, int32 [P, K]."""
        generator = np.random.default_rng(self.seed + 1)
        order = np.tile(np.arange(self.num_clusters, dtype=np.int32), (_NUM_PERMUTATIONS, 1))
        return generator.permuted(order, axis=1)

    def sum_clusters(self, values: Floats) -> Floats:
        """Return the sum over the images of each cluster, [K], of a value for each image, [N]."""
        sums = np.bincount(self.clusters, values, self.num_clusters)
        return sums.astype(np.float64)

    def resample(self, metric: ImageMetric, member: Bools) -> Floats:
        """Return the metric of some images for every draw, [B]."""
        if isinstance(metric, RatioMetric):
            sums = [self.sum_clusters(v * member) for v in (metric.numerator, metric.denominator)]
            columns = self.draws @ np.stack(sums, axis=1).astype(np.float32)
            return _divide(columns[:, 0], columns[:, 1])
        parts = []
        for start in range(0, min(metric.num_resamples, self.num_resamples), _CHUNK):
            counts = self.draws[start : start + _CHUNK][:, self.clusters] * member
            parts.append(metric.compute(counts.astype(np.int64)))
        return np.concatenate(parts)

    def estimate(self, metric: ImageMetric, member: Bools | None = None) -> Interval | None:
        """Return the metric of some images, or of all, with its 95 % interval; None where it is not defined."""
        member = np.ones(len(self.clusters), bool) if member is None else member
        value = float(metric.compute(member[None].astype(np.int64))[0])
        if not np.isfinite(value):
            return None
        if is_proportion(metric) and value in (0.0, 1.0):
            # Draws of images that are all alike have no spread, which would promise too much of a few.
            counted = self.clusters[member & (metric.denominator > 0)]
            return Interval(value, *compute_wilson(value, len(np.unique(counted))))
        return _bound(value, self.resample(metric, member))

    def compare(self, metric: ImageMetric, member: Bools) -> Comparison | None:
        """Compare some images with all others; None where the metric is not defined of either."""
        value, other = self.estimate(metric, member), self.estimate(metric, ~member)
        if value is None or other is None:
            return None
        differences = self.resample(metric, member) - self.resample(metric, ~member)
        gap = value.value - other.value
        # The tests: exact where images stand alone and count whole, by permutation of whole clusters, or by the spread.
        num_inside = self.sum_clusters(member.astype(float))
        is_whole = ((num_inside == 0) | (num_inside == np.bincount(self.clusters))).all()
        is_alone = isinstance(metric, RatioMetric) and (
            self.sum_clusters((metric.denominator > 0).astype(float)).max() <= 1
        )
        if is_proportion(metric) and is_alone:
            p_value, test = _test_exactly(metric, member), "exact (mid-p)"
        elif isinstance(metric, RatioMetric) and is_whole:
            p_value = self._test_by_permutation(metric, num_inside > 0)
            test = "permutation of clusters" if self.is_clustered else "permutation"
        else:
            spread = float(np.nanstd(differences))
            freedom = max(1, int((num_inside > 0).sum()) - 1)
            p_value = float(2 * t.sf(abs(gap) / spread, freedom)) if spread > 0 else 1.0
            test = "bootstrap"
        return Comparison(value, _bound(gap, differences), p_value, test)

    def _test_by_permutation(self, metric: RatioMetric, inside: Bools) -> float:
        """Return the two-sided p-value of the gap between clusters [K] inside and outside."""
        top, bottom = (self.sum_clusters(v) for v in (metric.numerator, metric.denominator))
        total_top, total_bottom, number = top.sum(), bottom.sum(), int(inside.sum())

        def measure_gap(inner_top: Floats, inner_bottom: Floats) -> Floats:
            return _divide(inner_top, inner_bottom) - _divide(
                total_top - inner_top, total_bottom - inner_bottom
            )

        seen = abs(
            float(measure_gap(np.array([top[inside].sum()]), np.array([bottom[inside].sum()]))[0])
        )
        chosen = self.permutations[:, :number]
        gaps = np.abs(np.nan_to_num(measure_gap(top[chosen].sum(1), bottom[chosen].sum(1))))
        count = int((gaps >= seen - 1e-12).sum())
        p_value = (1 + count) / (1 + len(gaps))
        if count:
            return p_value
        # Beyond what so many orders can show, the tail is that of a normal distribution of their spread.
        return float(min(p_value, 2 * norm.sf(seen / max(float(np.sqrt((gaps**2).mean())), 1e-12))))

    def compute_design_effect(self, metric: ImageMetric) -> float:
        """Return by which factor clusters make the variance of a proportion larger, 1 at least."""
        value = self.estimate(metric)
        if value is None or not self.is_clustered or not isinstance(metric, RatioMetric):
            return 1.0
        alone = value.value * (1 - value.value) / max(metric.denominator.sum(), 1)
        drawn = float(np.nanvar(self.resample(metric, np.ones(len(self.clusters), bool))))
        return max(1.0, drawn / alone) if alone > 0 else 1.0


def _divide(top: NDArray[np.floating], bottom: NDArray[np.floating]) -> Floats:
    """Return quotients, NaN where nothing counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(bottom) > 0, np.asarray(top, np.float64) / bottom, np.nan)


def _bound(value: float, draws: Floats) -> Interval:
    """Return a value between the ends of 95 % of its draws."""
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def _test_exactly(metric: RatioMetric, member: Bools) -> float:
    """Return Fisher's two-sided p-value, mid-p, for the counts of a proportion."""
    counted = metric.denominator > 0
    hits = (metric.numerator > 0) & counted
    total, inside = int(counted.sum()), int((counted & member).sum())
    seen, table = int((hits & member).sum()), (total, int(hits.sum()), inside)
    # What is as likely as what was seen counts half.
    upper = float(hypergeom.sf(seen, *table) + 0.5 * hypergeom.pmf(seen, *table))
    return min(1.0, 2 * min(upper, 1 - upper))


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p-values: calling real those up to q makes at most a fraction q of them false.

    Benjamini and Hochberg, Controlling the false discovery rate, 1995.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values)
    ranked = values[order] * len(values) / np.arange(1, len(values) + 1)
    adjusted = np.minimum.accumulate(ranked[::-1])[::-1].clip(max=1.0)
    result = np.empty_like(values)
    result[order] = adjusted
    return [float(value) for value in result]


def find_smallest_gap(
    num_inside: float, num_outside: float, rate: float, *, num_comparisons: int = 1
) -> float | None:
    """Return the smallest gap of a proportion that four of five audits would call real; None where none is as large.

    The group is the worse one, its errors are more than those of all others by the gap, and the test is the exact one
    at a level divided by the number of comparisons, the strictest that Benjamini and Hochberg ask for.

    Args:
        num_inside: Images of the group, or what they are worth where clusters make images alike.
        num_outside: All other images, likewise.
        rate: Fraction of errors among the others, 0 to 1.
        num_comparisons: Number of comparisons that the audit makes.
    """
    inside, outside = max(1, round(num_inside)), max(1, round(num_outside))
    level = LEVEL / max(1, num_comparisons)
    # Errors of the others, at quantiles of what is to be expected, and the fewest in the group that then stand out.
    errors = binom.ppf(_NODES, outside, min(max(rate, 0.5 / outside), 1.0)).astype(np.int64)
    low, high = np.zeros(len(errors), np.int64), np.full(len(errors), inside + 1)
    while (low < high).any():
        middle = np.minimum((low + high) // 2, inside)
        table = (inside + outside, errors + middle, inside)
        upper = hypergeom.sf(middle, *table) + 0.5 * hypergeom.pmf(middle, *table)
        stands_out = (middle * outside > errors * inside) & (2 * upper <= level)
        is_open = low < high
        high = np.where(is_open & stands_out, middle, high)
        low = np.where(is_open & ~stands_out, middle + 1, low)
    limits = low

    def compute_power(gap: float) -> float:
        return float(binom.sf(limits - 1, inside, min(rate + gap, 1.0)).mean()) - POWER

    most = 1.0 - rate
    if most <= 0 or compute_power(most) < 0:
        return None
    return float(brentq(compute_power, 0.0, most, xtol=1e-4)) if compute_power(0.0) < 0 else 0.0


def count_missing(
    gap: float, num_inside: float, num_outside: float, rate: float, *, num_comparisons: int = 1
) -> int | None:
    """Return how many more images of a group it takes to see a gap; None where the others are too few.

    Arguments are those of `find_smallest_gap`, which says 0 images more where the gap is seen already.
    """
    total = max(float(num_inside), 1.0)
    smallest = find_smallest_gap(total, num_outside, rate, num_comparisons=num_comparisons)
    if smallest is not None and smallest <= gap:
        return 0
    # The gap shrinks with about the root of the number of images, so a few steps come close.
    for _ in range(4):
        total *= min((1.0 if smallest is None else smallest) / gap, 10.0) ** 2
        if total > _MOST_TIMES * num_outside:
            return None  # the others are too few, however many the group has
        smallest = find_smallest_gap(total, num_outside, rate, num_comparisons=num_comparisons)
        if smallest is not None and abs(smallest / gap - 1) < 0.05:
            break
    return max(1, math.ceil(total - num_inside))
