"""Calibration of scores: temperature scaling, calibration error, and thresholds with a guarantee (split conformal)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize_scalar
from scipy.special import betaincinv, expit
from vfm_runtime.errors import DataError, VfmError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_NUM_BINS = 15
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 0.05, 20.0
# 0.01 * 700 is a little more than 7 in binary; what is whole must not be rounded up.
_SLACK = 1e-9
_TINY = float(np.finfo(np.float32).tiny)
# Scores keep this far from 0 and 1, half a step of float32 below 1, so that their logits are finite: at most 17.
_EDGE = 2.0**-25


class TooFewError(VfmError, ValueError):
    """Too few samples for a threshold with a guarantee; the text says how many it takes."""


def fit_temperature(logits: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """The temperature by which logits are divided to become the best probabilities, by negative log-likelihood.

    Both classes weigh the same, so that the frequency of a class does not matter. The targets are drawn a little
    towards the middle, as if each class had two more samples, one of either label (Platt, Probabilistic outputs for
    support vector machines, 1999, section 2.2): without it, classes that do not overlap would have a temperature of 0.

    Args:
        logits: float [N], one for each video.
        positive: bool [N], the true labels.

    Raises:
        ValueError: A class is missing, or reals have the higher logits.
    """
    values, truth = _check_pairs(logits, positive)
    if truth.all() or not truth.any():
        only = "positive" if truth.all() else "negative"
        raise DataError(
            f"All {len(truth)} are {only}. A temperature needs both classes: add the others."
        )
    number = np.where(truth, truth.sum(), (~truth).sum())
    target = np.where(truth, (number + 1) / (number + 2), 1 / (number + 2))
    weight = 0.5 / number
    # The loss is convex in the inverse of the temperature; scaled logits keep the search alike for any model.
    scale = float(np.sqrt((weight * values**2).sum())) or 1.0
    scaled = values / scale

    def compute_slope(factor: float) -> float:
        return float((weight * (expit(factor * scaled) - target) * scaled).sum())

    if compute_slope(0.0) >= 0:
        raise DataError(
            "The logits of reals are no lower than those of the others, so no temperature makes "
            "probabilities of them. "
            "Check that labels are not swapped (real is 0), and look at the AUC first."
        )
    high = 1.0
    while compute_slope(high) < 0:
        high *= 2
    return float(scale / brentq(compute_slope, 0.0, high))


def fit_class_temperature(log_scores: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """The temperature by which a classifier's logits are divided for the least negative log-likelihood, 0.05 to 20.

    Guo et al., On calibration of modern neural networks, 2017. The true class is taken to be true of all images but
    one, the others share that one, as `fit_temperature` does it for two: without it, a temperature of 0 would be the
    best where every prediction is right.

    Args:
        log_scores: float [N, C], logits, or logarithms of their softmax, which differ by a constant.
        target: int [N], true classes.

    Raises:
        ValueError: The shapes do not fit, or there are no images or fewer than two classes.
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
    soft_target = np.full(values.shape, 1 / (number + 2) / (classes - 1))
    soft_target[np.arange(number), truth] = (number + 1) / (number + 2)

    def compute_loss(temperature: float) -> float:
        divided = values / temperature
        return float((np.logaddexp.reduce(divided, axis=1) - (soft_target * divided).sum(1)).sum())

    return _find_minimum(compute_loss)


def fit_label_temperature(logits: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """The same for independent labels: the least negative log-likelihood over all images and labels, 0.05 to 20.

    One label is taken to be true of an image that lacks it, and one not to be of an image that has it, among all: for
    each label by itself it would make rare labels of few images look more frequent than they are.

    Args:
        logits: float [N, C], one for each image and label.
        target: [N, C] of zeros and ones.

    Raises:
        ValueError: The shapes differ, or there are no images or labels.
    """
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(target, dtype=bool)
    if values.ndim != 2 or truth.shape != values.shape or not values.size:
        raise DataError(
            f"The logits have shape {values.shape}, the true labels {truth.shape}. Pass [N, C] twice, of at least one "
            "image and label."
        )
    support = truth.sum()
    soft_target = np.where(truth, (support + 1) / (support + 2), 1 / (truth.size - support + 2))
    return _find_minimum(lambda temperature: _sum_nll(values / temperature, soft_target))


def fit_score_temperature(scores: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """The temperature that suits the logits behind probabilities best: 1 where these are right as they are.

    Args:
        scores: float [N, C], probabilities of one label an image, or of each label by itself.
        target: True classes, int [N]; or [N, C] of zeros and ones where several labels may apply.

    Raises:
        ValueError: The shapes do not fit, or there are no images.
    """
    values = np.asarray(scores, dtype=np.float64)
    if np.ndim(target) == 1:
        return fit_class_temperature(np.log(np.maximum(values, _TINY)), target)
    values = np.clip(values, _EDGE, 1 - _EDGE)
    return fit_label_temperature(np.log(values) - np.log1p(-values), target)


def measure_score_error(scores: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Expected calibration error of the best label's score, or the mean over labels where several may apply.

    Arguments are those of `fit_score_temperature`.
    """
    values, truth = np.asarray(scores), np.asarray(target)
    if truth.ndim == 1:
        return compute_calibration_error(values.max(axis=1), values.argmax(axis=1) == truth)
    # Each label by itself: together, the many that hardly ever apply would hide the rest.
    columns = zip(values.T, truth.T, strict=True)
    return float(np.mean([compute_calibration_error(*column) for column in columns]))


def _find_minimum(compute_loss: Callable[[float], float]) -> float:
    """The temperature of least loss, which is convex in its inverse and so has one minimum."""
    ends = (math.log(_LEAST_TEMPERATURE), math.log(_MOST_TEMPERATURE))
    result = minimize_scalar(
        lambda power: compute_loss(math.exp(power)),
        bounds=ends,
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.clip(math.exp(result.x), _LEAST_TEMPERATURE, _MOST_TEMPERATURE))


def _sum_nll(logits: FloatArray, target: npt.NDArray[Any], weight: Any = 1.0) -> float:
    return float((weight * (np.logaddexp(0, logits) - target * logits)).sum())


def compute_calibration_error(probability: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Expected calibration error: how far probabilities lie from how often they are right, over bins of equal mass.

    Args:
        probability: float [N], 0 to 1, such as the score of the best class.
        right: bool [N], such as whether that class is the true one.

    Raises:
        ValueError: The shapes differ, or there are no samples.
    """
    values, truth = np.asarray(probability, dtype=np.float64), np.asarray(right, dtype=bool)
    if values.ndim != 1 or values.shape != truth.shape or not len(values):
        raise DataError(
            f"There are {values.shape} probabilities and {truth.shape} answers. Pass one of each, at least one."
        )
    bins, mass = _fill_bins(values, truth, np.full(len(values), 1 / len(values)))
    return _average_gap(bins, mass)


class Cut(NamedTuple):
    """A threshold, and what is known of the predictions from it on."""

    threshold: float
    """Least score."""
    precision: float
    """Fraction of the predictions of at least that score that is right."""
    bound: float
    """The one-sided lower limit of that fraction."""
    num: int
    """Predictions of at least that score."""


def find_precision_cut(
    scores: npt.ArrayLike, right: npt.ArrayLike, least: float, level: float = 0.95
) -> tuple[Cut | None, Cut]:
    """The least score from which predictions are right often enough, and the one of the highest limit.

    Often enough is not as often as they were seen to be, but the lower end of the one-sided exact interval (Clopper and
    Pearson, 1934): few predictions prove little. A threshold lies halfway down to the next lower score.

    Args:
        scores: float [N], one for each prediction.
        right: bool [N], whether it is right.
        least: Fraction that shall be right, above 0 and below 1.
        level: Confidence of the interval, at each threshold on its own.

    Returns:
        None and the best where no threshold does.

    Raises:
        ValueError: `least` is not a fraction.
    """
    _check_fraction("least", least)
    thresholds, number, hits = _list_cuts(scores, right)
    bounds = np.where(hits > 0, betaincinv(np.maximum(hits, 1), number - hits + 1, 1 - level), 0.0)
    cuts = [
        Cut(*row)
        for row in zip(
            *(a.tolist() for a in (thresholds, hits / number, bounds, number)), strict=True
        )
    ]
    enough = np.flatnonzero(bounds >= least)
    return cuts[enough[-1]] if len(enough) else None, cuts[int(bounds.argmax())]


def find_best_f1(scores: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[float, float]:
    """The threshold of the highest F1, halfway down to the next lower score, and that F1.

    Args:
        scores: float [N], one for each image.
        truth: bool [N], whether the label applies; to at least one it does.
    """
    thresholds, number, hits = _list_cuts(scores, truth)
    f1 = 2 * hits / (number + hits[-1])
    best = int(f1.argmax())
    return float(thresholds[best]), float(f1[best])


def _list_cuts(
    scores: npt.ArrayLike, right: npt.ArrayLike
) -> tuple[FloatArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every threshold that scores can be cut at, with the number of samples and of right ones above it, [K] each."""
    values = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    ranked, hits = values[order], np.cumsum(np.asarray(right, dtype=bool)[order])
    # Equal scores pass together.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    return (ranked[ends] + np.append(ranked, 0.0)[ends + 1]) / 2, ends + 1, hits[ends]


class Bin(NamedTuple):
    """One bar of a reliability diagram."""

    score: float
    """Mean probability of a positive that was predicted, 0 to 1."""
    share: float
    """Fraction that is positive, 0 to 1."""
    num: int


def list_bins(probability: npt.ArrayLike, right: npt.ArrayLike) -> list[Bin]:
    """The bars of a reliability diagram, up to 15 of equal mass; arguments are those of `compute_calibration_error`."""
    values, truth = np.asarray(probability, dtype=np.float64), np.asarray(right, dtype=bool)
    return _fill_bins(values, truth, np.full(len(values), 1 / len(values)))[0]


def measure_reliability(logits: npt.ArrayLike, positive: npt.ArrayLike) -> dict[str, Any]:
    """How well the sigmoid of the logits serves as a probability, as if both classes were equally frequent.

    `ece` is the expected calibration error over up to 15 bins of equal mass (Nixon et al., Measuring calibration in
    deep learning, 2019), `brier` the mean squared error, `nll` the mean negative log-likelihood in nats; 0 is best for
    each. `bins` are (mean score, fraction of positives, number of samples). None of it is defined for a single class.

    Args:
        logits: float [N], calibrated, one for each video.
        positive: bool [N], the true labels.

    Raises:
        ValueError: The shapes differ, or there are no samples.
    """
    values, truth = _check_pairs(logits, positive)
    if truth.all() or not truth.any():
        return {"ece": None, "brier": None, "nll": None, "bins": []}
    weight = 0.5 / np.where(truth, truth.sum(), (~truth).sum())
    probability = expit(values)
    bins, mass = _fill_bins(probability, truth, weight)
    return {
        "ece": _average_gap(bins, mass),
        "brier": float((weight * (probability - truth) ** 2).sum()),
        "nll": _sum_nll(values, truth, weight),
        "bins": [each._asdict() for each in bins],
    }


def _fill_bins(
    probability: FloatArray, truth: BoolArray, weight: FloatArray
) -> tuple[list[Bin], list[float]]:
    """Up to 15 bins of equal mass, and the mass of each."""
    # Equal scores share a bin, whatever their order: they are one entry here.
    _, entry = np.unique(probability, return_inverse=True)
    mass = np.bincount(entry, weights=weight)
    middle = np.cumsum(mass) - mass / 2
    number = np.minimum((middle * _NUM_BINS / mass.sum()).astype(np.int64), _NUM_BINS - 1)[entry]
    bins, masses = [], []
    for each in np.unique(number):
        chosen = number == each
        masses.append(float(weight[chosen].sum()))
        score = float((weight * probability)[chosen].sum()) / masses[-1]
        positives = float(weight[chosen & truth].sum()) / masses[-1]
        bins.append(Bin(score, positives, int(chosen.sum())))
    return bins, masses


def _average_gap(bins: list[Bin], masses: list[float]) -> float:
    return sum(mass * abs(b.score - b.share) for b, mass in zip(bins, masses, strict=True))


def count_required_samples(rate: float) -> int:
    """The fewest samples for which `fit_conformal_threshold` gives a threshold that a fraction of `rate` may pass.

    Raises:
        ValueError: `rate` is not a fraction.
    """
    _check_fraction("rate", rate)
    return math.ceil(1 / rate * (1 - _SLACK)) - 1


def fit_conformal_threshold(values: npt.ArrayLike, rate: float, name: str = "reals") -> float:
    """A threshold that at most this fraction of new samples passes, whatever the model: the split conformal quantile.

    It is the ceil((n + 1) (1 - rate))-th smallest of the n values. A new sample from where these came from lies above
    it with a probability of at most `rate`, on average over draws of the n (Vovk et al., Algorithmic learning in a
    random world, 2005, section 2.2). Of one draw the true fraction is a little higher or lower: `bound_rate` of the
    number above it bounds that fraction.

    Args:
        values: float [n], such as the logits of real videos, one for each.
        rate: Fraction that may pass, above 0 and below 1.
        name: What an error calls the samples.

    Raises:
        TooFewError: There are fewer than 1 / rate - 1: any threshold would be a guess.
        ValueError: A value is not finite, or `rate` is not a fraction.
    """
    _check_fraction("rate", rate)
    ranked = np.sort(np.asarray(values, dtype=np.float64))
    if not np.isfinite(ranked).all():
        number = int((~np.isfinite(ranked)).sum())
        raise DataError(
            f"{number} of {len(ranked)} values of {name} are not finite, and have no rank."
        )
    number = len(ranked)
    rank = math.ceil((number + 1) * (1 - rate) * (1 - _SLACK))
    if rank > number:
        # Rounded up to a tenth of a percent.
        enough_for = math.ceil(1000 / (number + 1)) / 10
        raise TooFewError(
            f"There are {number} {name}, too few for a threshold that at most {100 * rate:g} % of such pass: it takes "
            f"at least {count_required_samples(rate)}, and about {math.ceil(3 / rate)} to confirm it. Add {name}, or "
            f"allow {enough_for:g} % or more."
        )
    return float(ranked[max(rank, 1) - 1])


def bound_rate(num_errors: int, num: int, level: float = 0.95) -> float:
    """The upper end of the one-sided exact interval of a rate (Clopper and Pearson, 1934).

    Args:
        num_errors: Errors that were seen.
        num: Trials, of which they were seen.
        level: Confidence that the true rate is no higher, 0 to 1.

    Raises:
        ValueError: The numbers make no rate, or `level` is not a fraction.
    """
    if not 0 <= num_errors <= num or num < 1:
        raise DataError(
            f"{num_errors} errors of {num} make no rate. Give 0 up to their number, at least 1."
        )
    _check_fraction("level", level)
    return 1.0 if num_errors == num else float(betaincinv(num_errors + 1, num - num_errors, level))


def _check_pairs(logits: npt.ArrayLike, positive: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(positive, dtype=bool)
    if values.ndim != 1 or values.shape != truth.shape or not len(values):
        raise DataError(
            f"There are {values.shape} logits and {truth.shape} labels. Pass one of each for every video, at least one."
        )
    return values, truth


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise DataError(
            f"{name} is {value}, but it is a share above 0 and below 1. For 1 % give 0.01."
        )
