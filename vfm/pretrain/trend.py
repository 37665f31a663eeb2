"""Trend of a pretraining: what more hours would give, by a line of kNN over the logarithm of the hours so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

FEWEST_ROUNDS = 4
"""Rounds without which no line is drawn: of three, one is left to tell how far they scatter."""
_LEVEL = 0.95


class ExpectedGain(NamedTuple):
    """Points (hundredths) of accuracy that are to be expected of more training, and half of the 95 % interval."""

    points: float
    margin: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} +- {self.margin:.1f} points"


class Trend(NamedTuple):
    """Least-squares line of accuracy over the natural logarithm of hours."""

    slope: float
    error: float
    """Standard error of the slope, from the residuals."""
    residual: float
    """Standard deviation of the points around the line: the noise with which one more would be measured."""
    num_points: int
    hours: float
    """Hours so far."""
    room: float
    """What is missing to an accuracy of 1."""

    def expect(self, more: float) -> ExpectedGain:
        """Return the gain of more hours; never more than there is room for.

        Args:
            more: Hours of training from now on.
        """
        times = math.log((self.hours + more) / self.hours)
        quantile = float(student.ppf((1 + _LEVEL) / 2, self.num_points - 2))
        gain = min(self.slope * times, self.room)
        return ExpectedGain(100 * gain, 100 * quantile * self.error * times)

    def pays(self, more: float) -> bool:
        """Return whether the gain of more hours is above the noise of a point, so that it could be seen.

        Args:
            more: Hours of training from now on.
        """
        return self.expect(more).points > 100 * self.residual


def fit_trend(hours: Sequence[float], accuracy: Sequence[float], num_judged: int) -> Trend | None:
    """Fit the line; None of fewer than 4 points.

    Args:
        hours: Hours of training of each point, above 0.
        accuracy: Accuracy of kNN after them.
        num_judged: Images that the accuracy is of: one of them is the least noise.
    """
    if len(hours) < FEWEST_ROUNDS:
        return None
    x, y = np.log(np.asarray(hours)), np.asarray(accuracy)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    residuals = y - y.mean() - slope * (x - x.mean())
    residual = max(math.sqrt(float((residuals**2).sum()) / (len(x) - 2)), 1 / num_judged)
    return Trend(slope, residual / math.sqrt(spread), residual, len(x), hours[-1], 1 - accuracy[-1])
