"""Is a score a probability, and how often does a threshold err? Temperature, reliability, and guarantees."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from vfm_runtime.errors import DataError, OptionError, VfmError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_NUM_BINS = 15
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 0.05, 20.0
_MOST_STEPS = 100
_TOLERANCE = 1e-10
# 0.01 * 700 is a little more than 7 in binary; what is whole must not be rounded up.
_SLACK = 1e-9


class TooFewError(VfmError, ValueError):
    """Too few samples for a threshold with a guarantee; the text says how many it takes."""


def fit_temperature(logits: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """The temperature by which logits are divided to become the best probabilities, by negative log-likelihood.

    Both classes weigh the same, so that the share of a class does not matter. The targets are drawn a little towards
    the middle, as if each class had two more samples, one of either label (Platt, Probabilistic outputs for
    support vector machines, 1999, section 2.2): without it, classes that do not overlap would have a temperature of 0.

    Args:
        logits: float [N], one for each video.
        positive: bool [N].

    Raises:
        ValueError: A class is missing, or reals have the higher logits.
    """
    values, truth = _checked(logits, positive)
    _require_both(truth)
    number = np.where(truth, truth.sum(), (~truth).sum())
    target = np.where(truth, (number + 1) / (number + 2), 1 / (number + 2))
    weight = 0.5 / number
    # The loss is convex in the inverse of the temperature; scaled logits keep the steps alike for any model.
    scale = float(np.sqrt((weight * values**2).sum())) or 1.0
    slope = _slope(values / scale, target, weight) / scale
    if slope <= 0:
        raise DataError(
            "The logits of reals are no lower than those of the others, so no temperature makes "
            "probabilities of them. "
            "Check that labels are not swapped (real is 0), and look at the AUC first."
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


def fit_class_temperature(log_scores: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """The temperature by which a classifier's logits are divided for the least negative log-likelihood, 0.05 to 20.

    Guo et al., On calibration of modern neural networks, 2017. The true class is taken to be true of all images but
    one, the others share that one, as `fit_temperature` does it for two: without it, a temperature of 0 would be the
    best where every answer is right.

    Args:
        log_scores: float [N, C], logits, or logarithms of their softmax, which differ by a constant.
        target: int [N], true classes.
    """
    values, truth = np.asarray(log_scores, dtype=np.float64), np.asarray(target)
    if (
        values.ndim != 2
        or truth.shape != values.shape[:1]
        or values.shape[1] < 2
        or not len(values)
    ):
        raise DataError(
            f"The log scores have shape {values.shape}, the true classes {truth.shape}. Pass [N, C] and [N], of at "
            "least one image and two classes."
        )
    number, classes = values.shape
    target_share = np.full(values.shape, 1 / (number + 2) / (classes - 1))
    target_share[np.arange(number), truth] = (number + 1) / (number + 2)

    def loss(temperature: float) -> float:
        divided = values / temperature
        return float((np.logaddexp.reduce(divided, axis=1) - (target_share * divided).sum(1)).sum())

    return _least(loss)


def fit_label_temperature(logits: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """The same for independent labels: the least negative log-likelihood over all images and labels, 0.05 to 20.

    Args:
        logits: float [N, C].
        target: [N, C] of zeros and ones.
    """
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(target, dtype=bool)
    if values.ndim != 2 or truth.shape != values.shape or not values.size:
        raise DataError(
            f"The logits have shape {values.shape}, the true labels {truth.shape}. Pass [N, C] twice, of at least one "
            "image and label."
        )
    given = truth.sum(axis=0)
    share = np.where(truth, (given + 1) / (given + 2), 1 / (len(truth) - given + 2))

    def loss(temperature: float) -> float:
        return _loss(values / temperature, share, np.ones_like(values))

    return _least(loss)


def _least(loss: Callable[[float], float]) -> float:
    """The temperature of least loss, which is convex in its inverse and so has one minimum."""
    # Takes a while to import, and only few calls need it.
    from scipy.optimize import minimize_scalar

    ends = (math.log(_LEAST_TEMPERATURE), math.log(_MOST_TEMPERATURE))
    found = minimize_scalar(
        lambda power: loss(math.exp(power)), bounds=ends, method="bounded", options={"xatol": 1e-6}
    )
    return float(np.clip(math.exp(found.x), _LEAST_TEMPERATURE, _MOST_TEMPERATURE))


def calibration_error(chance: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Expected calibration error: how far probabilities lie from how often they are right, over bins of equal mass.

    Args:
        chance: float [N], 0 to 1, such as the score of the best class.
        right: bool [N], such as whether that class is the true one.
    """
    values, truth = np.asarray(chance, dtype=np.float64), np.asarray(right, dtype=bool)
    if values.ndim != 1 or values.shape != truth.shape or not len(values):
        raise DataError(
            f"There are {values.shape} probabilities and {truth.shape} answers. Pass one of each, at least one."
        )
    bins = _bins(values, truth, np.full(len(values), 1 / len(values)))
    return sum(mass * abs(score - share) for score, share, _, mass in bins)


class Cut(NamedTuple):
    """A threshold, and what is known of the answers from it on."""

    threshold: float
    """Least score."""
    precision: float
    """Share of the answers of at least that score that is right."""
    bound: float
    """The one-sided lower limit of that share."""
    num: int
    """Answers of at least that score."""


def precision_cut(
    scores: npt.ArrayLike, right: npt.ArrayLike, least: float, level: float = 0.95
) -> tuple[Cut | None, Cut]:
    """The least score from which answers are right often enough, and the one of the highest limit.

    Often enough is not as often as they were seen to be, but the lower end of the one-sided exact interval (Clopper and
    Pearson, 1934): few answers prove little. A threshold lies halfway down to the next lower score.

    Args:
        scores: float [N], of the answers.
        right: bool [N].
        least: Share that shall be right, above 0 and below 1.
        level: Confidence of the interval, at each threshold on its own.

    Returns:
        None and the best where no threshold does.
    """
    from scipy.special import betaincinv

    _check_share("least", least)
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=bool)
    order = np.argsort(-values, kind="stable")
    ranked, hits = values[order], np.cumsum(truth[order])
    # Answers of equal score pass together.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    number, good = ends + 1, hits[ends]
    bounds = np.where(good > 0, betaincinv(np.maximum(good, 1), number - good + 1, 1 - level), 0.0)
    below = np.append(ranked, 0.0)[ends + 1]

    def cut(place: int) -> Cut:
        middle = float((ranked[ends[place]] + below[place]) / 2)
        return Cut(
            middle, float(good[place] / number[place]), float(bounds[place]), int(number[place])
        )

    enough = np.flatnonzero(bounds >= least)
    return cut(int(enough[-1])) if len(enough) else None, cut(int(bounds.argmax()))


def best_f1(scores: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[float, float]:
    """The threshold of the highest F1, halfway down to the next lower score, and that F1.

    Args:
        scores: float [N].
        truth: bool [N], whether it applies; at least one does.
    """
    values, applies = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=bool)
    order = np.argsort(-values, kind="stable")
    ranked, hits = values[order], np.cumsum(applies[order])
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    f1 = 2 * hits[ends] / (ends + 1 + applies.sum())
    best = int(f1.argmax())
    below = np.append(ranked, 0.0)[ends[best] + 1]
    return float((ranked[ends[best]] + below) / 2), float(f1[best])


class Bin(NamedTuple):
    """One bar of a reliability diagram."""

    score: float
    """Mean probability of a positive that was answered, 0 to 1."""
    share: float
    """Share that is positive, 0 to 1."""
    num: int


def reliability(logits: npt.ArrayLike, positive: npt.ArrayLike) -> dict[str, Any]:
    """How well the sigmoid of the logits serves as a probability, as if both classes were equally frequent.

    `ece` is the expected calibration error over up to 15 bins of equal mass (Nixon et al., Measuring calibration in
    deep learning, 2019), `brier` the mean squared error, `nll` the mean negative log-likelihood in nats; 0 is best for
    each. `bins` are (mean score, share of positives, number of samples). None of it is defined for a single class.

    Args:
        logits: float [N], calibrated, one for each video.
        positive: bool [N].
    """
    values, truth = _checked(logits, positive)
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
    """Mean score, share of positives, number and mass of up to 15 bins."""
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
        raise DataError(
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
        raise DataError(
            f"{num_errors} errors of {num} make no rate. Give 0 up to their number, at least 1."
        )
    _check_share("level", level)
    return 1.0 if num_errors == num else float(betaincinv(num_errors + 1, num - num_errors, level))


def _allowed(number: int) -> float:
    """The smallest rate that so many samples suffice for, rounded up to a tenth of a percent."""
    return math.ceil(1000 / (number + 1)) / 1000


def _checked(logits: npt.ArrayLike, positive: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(positive, dtype=bool)
    if values.ndim != 1 or values.shape != truth.shape or not len(values):
        raise DataError(
            f"There are {values.shape} logits and {truth.shape} labels. Pass one of each for every video, at least one."
        )
    return values, truth


def _require_both(positive: BoolArray) -> None:
    if positive.all() or not positive.any():
        only = "positive" if positive.all() else "negative"
        raise DataError(
            f"All {len(positive)} are {only}. A temperature needs both classes: add the others."
        )


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise OptionError(
            f"{name} is {value}, but it is a share above 0 and below 1. For 1 % give 0.01."
        )
