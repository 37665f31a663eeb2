"""Is a score a probability, and how often does a threshold err? Temperature, reliability, and guarantees."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_NUM_BINS = 15
_MOST_STEPS = 100
_TOLERANCE = 1e-10
# 0.01 * 700 is a little more than 7 in binary; what is whole must not be rounded up.
_SLACK = 1e-9


class TooFewError(ValueError):
    """Too few samples for a threshold with a guarantee; the text says how many it takes."""


def fit_temperature(logits: npt.ArrayLike, fake: npt.ArrayLike) -> float:
    """The temperature by which logits are divided to become the best probabilities, by negative log-likelihood.

    Both classes weigh the same, so that the share of fakes in the data does not matter. The targets are drawn a little
    towards the middle, as if each class had two more samples, one of either label (Platt, Probabilistic outputs for
    support vector machines, 1999, section 2.2): without it, classes that do not overlap would have a temperature of 0.

    Args:
        logits: float [N], one for each video.
        fake: bool [N].

    Raises:
        ValueError: A class is missing, or reals have the higher logits.
    """
    values, truth = _checked(logits, fake)
    _require_both(truth)
    number = np.where(truth, truth.sum(), (~truth).sum())
    target = np.where(truth, (number + 1) / (number + 2), 1 / (number + 2))
    weight = 0.5 / number
    # The loss is convex in the inverse of the temperature; scaled logits keep the steps alike for any model.
    scale = float(np.sqrt((weight * values**2).sum())) or 1.0
    slope = _slope(values / scale, target, weight) / scale
    if slope <= 0:
        raise ValueError(
            "The logits of reals are no lower than those of fakes, so no temperature makes probabilities of them. "
            "Check that labels are not swapped (real is 0, fake is 1), and look at the AUC first."
        )
    return 1 / slope


def _slope(values: FloatArray, target: FloatArray, weight: FloatArray) -> float:
    """The factor of least loss, by Newton steps that are halved where they would raise it."""
    factor = 0.0
    for _ in range(_MOST_STEPS):
        chance = sigmoid(factor * values)
        gradient = float((weight * (chance - target) * values).sum())
        curvature = float((weight * chance * (1 - chance) * values**2).sum())
        step = gradient / max(curvature, 1e-300)
        loss = _loss(factor * values, target, weight)
        while _loss((factor - step) * values, target, weight) > loss and abs(step) > _TOLERANCE:
            step /= 2
        factor -= step
        if abs(step) <= _TOLERANCE * max(1.0, abs(factor)):
            break
    return factor


def _loss(logits: FloatArray, target: FloatArray, weight: FloatArray) -> float:
    return float((weight * (np.logaddexp(0, logits) - target * logits)).sum())


def sigmoid(logits: npt.ArrayLike) -> FloatArray:
    """Probability of each logit, without overflow."""
    values = np.asarray(logits, dtype=np.float64)
    chance: FloatArray = np.exp(-np.logaddexp(0, -values))
    return chance


class Bin(NamedTuple):
    """One bar of a reliability diagram."""

    score: float
    """Mean probability of fake that was answered, 0 to 1."""
    share: float
    """Share that is fake, 0 to 1."""
    num: int


def reliability(logits: npt.ArrayLike, fake: npt.ArrayLike) -> dict[str, Any]:
    """How well the sigmoid of the logits serves as a probability, as if reals and fakes were equally frequent.

    `ece` is the expected calibration error over up to 15 bins of equal mass (Nixon et al., Measuring calibration in
    deep learning, 2019), `brier` the mean squared error, `nll` the mean negative log-likelihood in nats; 0 is best for
    each. `bins` are (mean score, share of fakes, number of samples). None of it is defined for a single class.

    Args:
        logits: float [N], calibrated, one for each video.
        fake: bool [N].
    """
    values, truth = _checked(logits, fake)
    if truth.all() or not truth.any():
        return {"ece": None, "brier": None, "nll": None, "bins": []}
    weight = 0.5 / np.where(truth, truth.sum(), (~truth).sum())
    chance = sigmoid(values)
    bins = _bins(chance, truth, weight)
    mass = np.array([row[3] for row in bins])
    gaps = np.array([abs(row[0] - row[1]) for row in bins])
    return {
        "ece": float((mass * gaps).sum()),
        "brier": float((weight * (chance - truth) ** 2).sum()),
        "nll": _loss(values, truth.astype(np.float64), weight),
        "bins": [Bin(*row[:3])._asdict() for row in bins],
    }


def _bins(
    chance: FloatArray, truth: BoolArray, weight: FloatArray
) -> list[tuple[float, float, int, float]]:
    """Mean score, share of fakes, number and mass of up to 15 bins."""
    # Equal scores share a bin, whatever their order: they are one entry here.
    _, place = np.unique(chance, return_inverse=True)
    mass = np.bincount(place, weights=weight)
    middle = np.cumsum(mass) - mass / 2
    number = np.minimum((middle * _NUM_BINS / mass.sum()).astype(np.int64), _NUM_BINS - 1)[place]
    rows = []
    for each in np.unique(number):
        chosen = number == each
        total = float(weight[chosen].sum())
        score = float((weight * chance)[chosen].sum()) / total
        share = float(weight[chosen & truth].sum()) / total
        rows.append((score, share, int(chosen.sum()), total))
    return rows


def least_number(rate: float) -> int:
    """The fewest samples for which `conformal_threshold` gives a threshold.

    Args:
        rate: Share of samples that may pass, above 0 and below 1.
    """
    _check_share("rate", rate)
    return math.ceil(1 / rate * (1 - _SLACK)) - 1


def conformal_threshold(values: npt.ArrayLike, rate: float, name: str = "reals") -> float:
    """A threshold that at most this share of new samples passes, whatever the model: the split conformal quantile.

    It is the ceil((n + 1) (1 - rate))-th smallest of the n values. A new sample from where these came from lies above
    it with a probability of at most `rate`, on average over draws of the n (Vovk et al., Algorithmic learning in a
    random world, 2005, section 2.2). Of one draw the true share is a little higher or lower: `largest_rate` of the
    number above it bounds that share.

    Args:
        values: float [n], such as the logits of real videos, one for each.
        rate: Share that may pass, above 0 and below 1.
        name: What they are, for the error.

    Raises:
        TooFewError: There are fewer than 1 / rate - 1: any threshold would be a guess.
    """
    _check_share("rate", rate)
    ranked = np.sort(np.asarray(values, dtype=np.float64))
    if not np.isfinite(ranked).all():
        number = int((~np.isfinite(ranked)).sum())
        raise ValueError(
            f"{number} of {len(ranked)} values of {name} are not finite, and have no rank."
        )
    number = len(ranked)
    rank = math.ceil((number + 1) * (1 - rate) * (1 - _SLACK))
    if rank > number:
        raise TooFewError(
            f"There are {number} {name}, too few for a threshold that at most {100 * rate:g} % of such pass: it takes "
            f"at least {least_number(rate)}, and about {math.ceil(3 / rate)} to confirm it. Add {name}, or allow "
            f"{100 * _allowed(number):g} % or more."
        )
    return float(ranked[max(rank, 1) - 1])


def largest_rate(num_errors: int, num: int, level: float = 0.95) -> float:
    """The upper end of the one-sided exact interval of a rate (Clopper and Pearson, 1934).

    Args:
        num_errors: Errors that were seen.
        num: Trials.
        level: Confidence that the true rate is no higher, 0 to 1.
    """
    # Takes a while to import, and only few calls need it.
    from scipy.special import betaincinv

    if not 0 <= num_errors <= num or num < 1:
        raise ValueError(
            f"{num_errors} errors of {num} make no rate. Give 0 up to their number, at least 1."
        )
    _check_share("level", level)
    return 1.0 if num_errors == num else float(betaincinv(num_errors + 1, num - num_errors, level))


def _allowed(number: int) -> float:
    """The smallest rate that so many samples suffice for, rounded up to a tenth of a percent."""
    return math.ceil(1000 / (number + 1)) / 1000


def _checked(logits: npt.ArrayLike, fake: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(fake, dtype=bool)
    if values.ndim != 1 or values.shape != truth.shape or not len(values):
        raise ValueError(
            f"There are {values.shape} logits and {truth.shape} labels. Pass one of each for every video, at least one."
        )
    return values, truth


def _require_both(fake: BoolArray) -> None:
    if fake.all() or not fake.any():
        only = "fakes" if fake.all() else "reals"
        raise ValueError(
            f"All {len(fake)} videos are {only}. A temperature needs reals and fakes: add the others."
        )


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(
            f"{name} is {value}, but it is a share above 0 and below 1. For 1 % give 0.01."
        )
