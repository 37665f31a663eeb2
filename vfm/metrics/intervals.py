"""Bootstrap intervals: how far a metric may be trusted."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from vfm_runtime.errors import DataError

LEVEL = 0.95
"""Confidence level of the intervals in every report."""
_NORMAL = 1.96
"""Standard deviations to either side that hold 95 % of a normal distribution."""

# Bytes of resampled counts held at once; 1000 classes need 8 MB for each resample.
_CHUNK_BYTES = 64 * 2**20

Statistic = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A metric and the interval that contains it; prints as `0.973 [0.961, 0.984]`."""

    value: float
    """The metric of the data at hand."""
    low: float
    """Lower end of the interval, in the unit of `value`."""
    high: float
    """Upper end of the interval, in the unit of `value`."""

    def to_dict(self) -> dict[str, float]:
        """The three numbers under their names, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def compute_interval(
    statistic: Statistic,
    counts: npt.ArrayLike,
    *,
    num_resamples: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of a statistic over independent samples.

    Drawing N samples with replacement and counting their outcomes is a multinomial draw
    over the outcomes, so only the counts are resampled, not the samples: the cost depends
    on the number of outcomes that occurred. Samples themselves can be given as N ones; the
    statistic then receives how often each sample was drawn.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.

    Args:
        statistic: Maps counts `[B, ...]` to scores `[B]`, such as `compute_accuracy`. It must not
            keep its argument, whose memory is used again.
        counts: How often each outcome occurred, int `[...]`, such as a confusion matrix `[C, C]`.
        num_resamples: Resamples to draw. The ends of the interval get steadier with more.
        level: Fraction of the resampled scores inside the interval, between 0 and 1.
        seed: Seed of the draws; the same seed gives the same interval.

    Raises:
        ValueError: The counts cannot be resampled, an option is out of its range, or the statistic
            gives another number of scores than it got resamples.
    """
    counts = _check_counts(counts)
    if num_resamples < 1:
        raise DataError(f"num_resamples is {num_resamples}. Draw at least 1; 1000 is usual.")
    if not 0 < level < 1:
        raise DataError(
            f"level is {level}, but it is a share between 0 and 1. For 95 % pass level=0.95."
        )
    occupied = np.flatnonzero(counts)
    total = int(counts.sum())
    fractions = counts.ravel()[occupied] / total
    chunk = max(1, min(num_resamples, _CHUNK_BYTES // counts.nbytes))
    # Outcomes that never occurred are never drawn, so their zeros are written only here.
    buffer = np.zeros((chunk, counts.size), dtype=np.int64)
    generator = np.random.default_rng(seed)
    scores = np.empty(num_resamples)
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        buffer[:size, occupied] = generator.multinomial(total, fractions, size=size)
        batch = buffer[:size].reshape(size, *counts.shape)
        scores[start : start + size] = _apply_statistic(statistic, batch)
    tail = (1 - level) / 2
    low, high = np.quantile(scores, [tail, 1 - tail])
    return Interval(float(_apply_statistic(statistic, counts[None])[0]), float(low), float(high))


def _apply_statistic(statistic: Statistic, batch: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The scores [B] of a batch of counts [B, ...], with their shape checked."""
    scores = np.asarray(statistic(batch), dtype=np.float64)
    if scores.shape != batch.shape[:1]:
        raise DataError(
            f"The statistic returned shape {scores.shape} for counts of shape {batch.shape}. "
            f"It must return one score for each resample, shape {batch.shape[:1]}: reduce "
            "the trailing axes only."
        )
    return scores


def _check_counts(counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.asarray(counts)
    if array.dtype.kind not in "iu":
        raise DataError(
            f"Counts to resample have dtype {array.dtype}, but must be integers. "
            "Pass numbers of samples, not shares."
        )
    if array.size == 0 or array.min() < 0 or array.sum() == 0:
        raise DataError(
            f"Counts of shape {array.shape} cannot be resampled: they must be at least 0 "
            "and at least one must be above 0. Check that there are samples to score."
        )
    return array.astype(np.int64)


def compute_wilson(fraction: float, total: int) -> tuple[float, float]:
    """Return the 95 % score interval of a fraction of `total` images (Wilson, 1927)."""
    shrink = 1 + _NORMAL**2 / total
    middle = (fraction + _NORMAL**2 / (2 * total)) / shrink
    spread = fraction * (1 - fraction) / total + _NORMAL**2 / (4 * total**2)
    half = _NORMAL / shrink * math.sqrt(spread)
    return max(0.0, middle - half), min(1.0, middle + half)
