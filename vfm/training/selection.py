"""Honest comparison: bootstrap bias-corrected cross-validation (BBC-CV) of a choice, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm.heads_on_features.cross_validation import compute_losses
from vfm.metrics import Interval, rank_classes
from vfm.metrics.intervals import LEVEL, compute_wilson
from vfm.metrics.ranking import Ranking, Statistic, average_over_classes

_TAIL = (1 - LEVEL) / 2
_WIDENING = math.sqrt(math.e - 1)
"""A resample leaves out 1 / e of the images, whose metric varies by this factor more than that of all images."""
_LOSS_WEIGHT, _LEAST_SCORE = 0.5, 1e-6
_TYPICAL_GAIN, _TYPICAL_SPREAD = -0.01, 0.05
"""What fine-tuning gains over the best frozen head before anything was measured, and how much that varies."""


class Choice(NamedTuple):
    """The best of several candidates."""

    best: int
    """Index of the candidate that is chosen by all images."""
    interval: Interval
    """What the best candidate scores on new images, its having been chosen on these ones taken out."""


class Remade(NamedTuple):
    """A candidate that is made of others, made anew of the images of each of B samples."""

    criteria: NDArray[np.float64]
    """What it is chosen by, [B], of the images that a sample holds."""
    metrics: NDArray[np.float64]
    """Its metric, [B], of the images that a sample left out."""


class Gain(NamedTuple):
    """By how much one way is better than another on the same images."""

    interval: Interval
    error: float
    """Standard error of the gain."""

    @property
    def expected(self) -> float:
        """Gain to be expected on new images: what was measured, drawn towards what is usual where it is uncertain."""
        trust = _TYPICAL_SPREAD**2 / (_TYPICAL_SPREAD**2 + self.error**2)
        return trust * self.interval.value + (1 - trust) * _TYPICAL_GAIN


def build_statistic(scores: Sequence[NDArray[np.float32]], target: NDArray[np.int64]) -> Statistic:
    """Return the metric as a function of how often each image counts: accuracy, or mean average precision.

    Args:
        scores: Out-of-fold scores [N, C] of each repetition of a cross-validation, over which the metric is averaged.
        target: int [N], true classes; or [N, C] of zeros and ones where several labels may apply.
    """
    if target.ndim == 1:
        right = np.mean([repeat.argmax(axis=1) == target for repeat in scores], axis=0)
        return lambda counts: np.asarray(counts) @ right / np.asarray(counts).sum(axis=1)
    parts = [
        average_over_classes(Ranking.average_precision, rank_classes(repeat, target > 0))
        for repeat in scores
    ]
    return lambda counts: np.mean([part(counts) for part in parts], axis=0)


def build_criterion(scores: Sequence[NDArray[np.float32]], target: NDArray[np.int64]) -> Statistic:
    """Return what a head is chosen by: its metric less half its loss, since a metric of few images is coarse.

    The loss is the mean negative log-likelihood of the true classes, or of each yes and no; arguments are those of
    `build_statistic`.
    """
    metric = build_statistic(scores, target)
    losses = np.mean([compute_losses(repeat, target, _LEAST_SCORE) for repeat in scores], axis=0)

    def compute_criterion(counts: ArrayLike) -> NDArray[np.float64]:
        drawn = np.asarray(counts)
        value: NDArray[np.float64] = metric(drawn) - _LOSS_WEIGHT * (drawn @ losses) / drawn.sum(1)
        return value

    return compute_criterion


def draw_counts(
    num_images: int, keys: Sequence[Hashable] | None, num_resamples: int, seed: int
) -> NDArray[np.int64]:
    """Draw how often each image counts, [B, N], in samples with replacement; images of one key count alike."""
    members = np.arange(num_images)
    if keys is not None:
        members = np.unique([str(key) for key in keys], return_inverse=True)[1]
    number = int(members.max()) + 1
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(number, np.full(number, 1 / number), size=num_resamples)
    return drawn[:, members]


def choose_honestly(
    statistics: Sequence[Statistic],
    num_images: int,
    *,
    criteria: Sequence[Statistic] | None = None,
    remake: Callable[[NDArray[np.int64], NDArray[np.int64]], Remade] | None = None,
    keys: Sequence[Hashable] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Choice:
    """Choose the best of cross-validated candidates, and estimate what the chosen one scores on new images.

    Within each bootstrap sample of the images the best candidate is chosen again, and judged on the images that the
    sample left out (BBC-CV; Tsamardinos, Greasidou and Borboudakis, 2018). Nothing is fitted again. Of equal
    candidates the first is chosen, so they should come in the order of preference.

    Args:
        statistics: Metric of each candidate by how often the images count, from out-of-fold scores.
        num_images: N, the number of images.
        criteria: What each candidate is chosen by, the highest; by default its metric.
        remake: Makes the last candidate anew, where it was made of the others as the images had it: given how often
            each image counts in each sample, and in what it left out, both int [B, N].
        keys: Key of each image; images of one key are drawn together. By default each is drawn by itself.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """
    once = np.ones((1, num_images), dtype=np.int64)
    criteria = criteria or statistics
    best = int(np.argmax([criterion(once)[0] for criterion in criteria]))
    counts = draw_counts(num_images, keys, num_resamples, seed)
    counts = counts[(counts == 0).any(axis=1)]
    if len(counts) == 0:  # one key alone
        value = float(statistics[best](once)[0])
        return Choice(best, Interval(value, 0.0, 1.0))
    outside = (counts == 0).astype(np.int64)
    ranks = np.stack([criterion(counts) for criterion in criteria])
    judged = np.stack([statistic(outside) for statistic in statistics])
    if remake is not None:
        ranks[-1], judged[-1] = remake(counts, outside)
    chosen = ranks.argmax(axis=0)
    values = judged[chosen, np.arange(len(chosen))]
    values = values[np.isfinite(values)]
    value = float(values.mean())
    low, high = value + (np.quantile(values, [_TAIL, 1 - _TAIL]) - value) / _WIDENING
    # A bootstrap of nothing but right answers has no width.
    least, most = compute_wilson(value, num_images)
    return Choice(best, Interval(value, min(float(low), least), max(float(high), most)))


def estimate_score(
    statistic: Statistic,
    num_images: int,
    *,
    keys: Sequence[Hashable] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Estimate a metric with the 95 % percentile interval of a bootstrap over the images; arguments as before."""
    once = np.ones((1, num_images), dtype=np.int64)
    values = statistic(draw_counts(num_images, keys, num_resamples, seed))
    low, high = np.nanquantile(values, [_TAIL, 1 - _TAIL])
    return Interval(float(statistic(once)[0]), float(low), float(high))


def compare_pairs(
    statistic: Statistic,
    reference: Statistic,
    num_images: int,
    *,
    keys: Sequence[Hashable] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Gain:
    """Estimate by how much a way is better than another on the same images, by a paired bootstrap."""

    def compute_gain(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return statistic(counts) - reference(counts)

    once = np.ones((1, num_images), dtype=np.int64)
    values = compute_gain(draw_counts(num_images, keys, num_resamples, seed))
    low, high = np.nanquantile(values, [_TAIL, 1 - _TAIL])
    # Ways that agree on the few images at hand need not agree on others.
    error = max(float(np.nanstd(values)), 1 / num_images)
    return Gain(Interval(float(compute_gain(once)[0]), float(low), float(high)), error)
