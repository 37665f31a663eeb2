"""Group thresholds: a cutoff for each group at which an equal fraction of its samples passes, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from vfm.metrics.calibration import count_required_samples, fit_conformal_threshold

LEAST_SAMPLES = 20
"""Fewest samples of a group that a cutoff of its own is fitted on."""


class GroupCutoff(NamedTuple):
    """Cutoff of a group, and what is known of the samples that reach it."""

    cutoff: float
    """Least score that passes."""
    num: int
    """Samples of the group that it was fitted on."""
    low: float
    """Lower end of the 95 % interval of the fraction of further samples of the group that reach the cutoff."""
    high: float
    """Its upper end."""


def count_needed(fraction: float, *, at_most: bool) -> int:
    """Return how many samples a cutoff takes that a fraction of further ones reaches, at most or at least."""
    return max(LEAST_SAMPLES, count_required_samples(fraction if at_most else 1 - fraction))


def fit_cutoff(scores: npt.ArrayLike, fraction: float, *, at_most: bool) -> GroupCutoff:
    """Fit the cutoff that at most, or at least, a fraction of further samples reaches, on average over such fits.

    The split conformal quantile; fitted for each group on its own samples, it holds for each group (Vovk, Conditional
    validity of inductive conformal predictors, 2012). The fraction of one fit has a beta distribution.

    Args:
        scores: float [n], 0 to 1, of samples like those that it shall hold for.
        fraction: Fraction that reaches the cutoff, above 0 and below 1.
        at_most: Whether this is the most, as of false alarms, or the least, as of finds.

    Raises:
        TooFewError: There are fewer samples than `count_needed` says.
        ValueError: A score is not finite, or `fraction` is not a fraction.
    """
    values = np.sort(np.asarray(scores, np.float64))
    number = len(values)
    # Halfway to the next score on the side that is let in or kept out, so that the last digit of a score says nothing.
    if at_most:
        edge = fit_conformal_threshold(values, fraction, "samples")
        above = values[values > edge]
        cutoff = (edge + (above[0] if len(above) else 1.0)) / 2
        passing = len(above)
        above_edge = passing
    else:
        edge = -fit_conformal_threshold(-values, 1 - fraction, "samples")
        below = values[values < edge]
        cutoff = (edge + (below[-1] if len(below) else 0.0)) / 2
        passing = number - len(below)
        above_edge = passing - 1
    return GroupCutoff(float(cutoff), number, *bound_share(above_edge, number))


def bound_share(num_above: int, number: int) -> tuple[float, float]:
    """Return the 95 % interval of the fraction of further samples above one of some samples, by its rank among these.

    Args:
        num_above: Samples above that one.
        number: Samples, with that one.
    """
    low, high = betaincinv(num_above + 1, number - num_above, [0.025, 0.975]).tolist()
    return low, high


def fit_group_cutoffs(
    scores: npt.ArrayLike, groups: Sequence[str], fraction: float, *, at_most: bool
) -> dict[str, GroupCutoff | None]:
    """Fit a cutoff for each group; None of a group with too few samples.

    Args:
        scores: Scores of n samples, float [n], as of `fit_cutoff`.
        groups: Name of the group of each sample, [n].
        fraction: Fraction of each group that reaches its cutoff.
        at_most: Whether this fraction is the most, as of `fit_cutoff`, or the least.
    """
    values: npt.NDArray[Any] = np.asarray(scores, np.float64)
    names, least = np.asarray(groups, dtype=object), count_needed(fraction, at_most=at_most)
    fitted: dict[str, GroupCutoff | None] = {}
    for name in sorted(set(groups)):
        part = values[names == name]
        fitted[name] = fit_cutoff(part, fraction, at_most=at_most) if len(part) >= least else None
    return fitted
