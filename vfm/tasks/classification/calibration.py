"""Calibration of classifiers: a temperature that makes scores probabilities, and score thresholds by label."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.confidence import ConfidenceRules

from vfm.metrics.calibration import (
    compute_calibration_error,
    find_best_f1,
    find_precision_cut,
    fit_class_temperature,
    fit_label_temperature,
)
from vfm.tasks.calibration import (
    Calibration,
    CalibrationError,
    list_absent,
    refuse_precision,
    require_enough_images,
)
from vfm.tasks.classification.validation import LabelValidation

_LEVEL = 0.95
_TINY = float(np.finfo(np.float32).tiny)
# Half a step of float32 below 1: the largest logit that a score of 1 still tells of is near 17.
_EDGE = 2.0**-25
_APPLIES = 0.5

log = logging.getLogger(__name__)


def fit_labels(
    images: LabelValidation, outputs: Arrays, min_precision: float | None = None
) -> Calibration:
    """Fit a temperature, and thresholds for each label.

    Of a model that gives one label an image: the least score at which answers are right often enough, where that is
    asked for. Where several labels may apply: the score of the highest F1.

    Args:
        images: Images with their true labels.
        outputs: What the model says of them, with a temperature of 1.
        min_precision: Fraction of the answers that are sure which shall be right, at a confidence of 95 %; for models
            that give one label an image.

    Raises:
        CalibrationError: There are too few images, or nothing proves such a fraction.
    """
    require_enough_images(images)
    if images.multilabel:
        refuse_precision(min_precision, "multilabel")
        fitted = _several(images, outputs)
    else:
        fitted = _single(images, outputs, min_precision)
    log.info(
        "Temperature %.3f, fitted on %d images: the expected calibration error goes from %.4f to %.4f.",
        fitted.rules.temperature,
        fitted.num_images,
        fitted.error_before,
        fitted.error_after,
    )
    return fitted


def apply_temperature(
    scores: NDArray[Any], temperature: float, multilabel: bool
) -> NDArray[np.float64]:
    """What scores become when the logits behind them are divided by a temperature.

    Args:
        scores: [N, C], softmax of logits, or their sigmoid.
        temperature: Above 0.
        multilabel: Whether labels are independent.
    """
    if multilabel:
        return np.asarray(1 / (1 + np.exp(-_logits(scores) / temperature)), np.float64)
    powers = _logarithms(scores) / temperature
    powers = np.exp(powers - powers.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)


def _single(validation: LabelValidation, outputs: Arrays, least: float | None) -> Calibration:
    scores, truth = outputs["scores"], validation.truth
    temperature = fit_class_temperature(_logarithms(scores), truth)
    fitted = apply_temperature(scores, temperature, False)
    best = fitted.argmax(axis=1)
    right = best == truth
    thresholds: tuple[float, ...] | None = None
    shared: tuple[str, ...] = ()
    if least is not None:
        thresholds, shared = _precise(fitted.max(axis=1), best, right, validation.labels, least)
    return Calibration(
        ConfidenceRules(temperature=temperature, thresholds=thresholds),
        validation.num_images,
        compute_calibration_error(scores.max(axis=1), right),
        compute_calibration_error(fitted.max(axis=1), right),
        shared,
        least,
    )


def _precise(
    scores: NDArray[np.float64],
    best: NDArray[np.int64],
    right: NDArray[np.bool_],
    labels: tuple[str, ...],
    least: float,
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """A threshold for each label, and the labels that share that of all."""
    if not 0 < least < 1:
        raise CalibrationError(
            f"The precision is {least:g}, but it is a share above 0 and below 1. For 95 % give 0.95."
        )
    overall, closest = find_precision_cut(scores, right, least, _LEVEL)
    if overall is None:
        raise CalibrationError(
            f"No threshold proves a precision of {least:.1%} on these {len(scores)} images: the most is "
            f"{closest.bound:.1%}, by {closest.num} answers of which {closest.precision:.1%} are right. Ask for less, "
            "or name more images with --data."
        )
    thresholds, shared = [], []
    for number, label in enumerate(labels):
        own = best == number
        proved, closest = (
            find_precision_cut(scores[own], right[own], least, _LEVEL)
            if own.any()
            else (None, overall)
        )
        # Where little is proved, no less is asked than of all together, nor than what was seen to go wrong.
        least_score = max(overall.threshold, closest.threshold)
        thresholds.append(proved.threshold if proved else least_score)
        if proved is None:
            shared.append(label)
    if shared:
        log.warning(
            "Of %d of the %d labels there are too few answers, or too few right ones, to prove a precision of %.1f %%; "
            "they have that of all labels together, %.3f, or a higher one: %s%s.",
            len(shared),
            len(labels),
            100 * least,
            overall.threshold,
            ", ".join(shared[:5]),
            ", ..." if len(shared) > 5 else "",
        )
    return tuple(thresholds), tuple(shared)


def _several(validation: LabelValidation, outputs: Arrays) -> Calibration:
    scores, truth = outputs["scores"], validation.truth.astype(bool)
    temperature = fit_label_temperature(_logits(scores), truth)
    fitted = apply_temperature(scores, temperature, True)
    there = np.asarray(truth.any(axis=0))
    thresholds = [
        find_best_f1(fitted[:, k], truth[:, k])[0] if there[k] else _APPLIES
        for k in range(len(there))
    ]
    absent = list_absent(validation, there.tolist(), _APPLIES)
    return Calibration(
        ConfidenceRules(temperature=temperature, thresholds=tuple(thresholds)),
        validation.num_images,
        _mean_error(scores, truth),
        _mean_error(fitted, truth),
        absent,
    )


def _mean_error(scores: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """Of each label on its own: together, the many that hardly ever apply would hide the rest."""
    columns = zip(scores.T, truth.T, strict=True)
    return float(
        np.mean([compute_calibration_error(chance, applies) for chance, applies in columns])
    )


def _logarithms(scores: NDArray[Any]) -> NDArray[np.float64]:
    return np.log(np.maximum(np.asarray(scores, np.float64), _TINY))


def _logits(scores: NDArray[Any]) -> NDArray[np.float64]:
    chance = np.clip(np.asarray(scores, np.float64), _EDGE, 1 - _EDGE)
    return np.log(chance) - np.log1p(-chance)
