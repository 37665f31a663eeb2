"""Scores that mean what they say, and from which score on an answer is sure: fitted on validation images."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.confidence import ConfidenceRules
from vfm_runtime.tasks.detection import THRESHOLD

from vfm.bundle.validation import BoxValidation, LabelValidation, Validation
from vfm.metrics.calibration import (
    best_f1,
    calibration_error,
    fit_class_temperature,
    fit_label_temperature,
    precision_cut,
)
from vfm.metrics.detection import rankings

MIN_IMAGES = 50
"""Least number of images that anything is fitted on."""

_LEVEL = 0.95
_TINY = float(np.finfo(np.float32).tiny)
# Half a step of float32 below 1: the largest logit that a score of 1 still tells of is near 17.
_EDGE = 2.0**-25
_APPLIES = 0.5

log = logging.getLogger(__name__)


class CalibrationError(ValueError):
    """Nothing can be fitted on these images; the message says why and what to do."""


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and on what."""

    rules: ConfidenceRules
    """Temperature and thresholds; the thresholds are of scores after the temperature."""
    num_images: int
    """Images that it was fitted on."""
    error_before: float | None
    """Expected calibration error of the scores as they were; None of boxes."""
    error_after: float | None
    """The same after the temperature, on the images that it was fitted on."""
    shared: tuple[str, ...] = ()
    """Labels of which too little is known for a threshold of their own."""
    min_precision: float | None = None
    """Share of sure answers that shall be right."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"rules": self.rules.to_dict(), "shared": list(self.shared)}


def calibration(
    validation: Validation, outputs: Arrays, *, min_precision: float | None = None
) -> Calibration:
    """Fit a temperature, and thresholds for each label.

    Of a model that gives one label an image: the least score at which answers are right often enough, where that is
    asked for. Where several labels may apply, and of boxes: the score of the highest F1.

    Args:
        validation: Of the model.
        outputs: What the model says of its images, with a temperature of 1.
        min_precision: Share of the answers that are sure which shall be right, at a confidence of 95 %; for models that
            give one label an image.

    Raises:
        CalibrationError: There are too few images, or the model tells real from fake, or nothing proves such a share.
    """
    if validation.num_images < MIN_IMAGES:
        raise CalibrationError(
            f"There are {validation.num_images} validation images, too few to calibrate on: it takes at least "
            f"{MIN_IMAGES}, and about 1,000 to do it well. Name more with --data."
        )
    if min_precision is not None and validation.kind != "classification":
        raise CalibrationError(
            f"A precision of {min_precision:g} was asked for, but a model of the kind '{validation.kind}' has another "
            "threshold for each label, that of the highest F1. Leave the precision out."
        )
    if isinstance(validation, BoxValidation):
        return _boxes(validation, outputs)
    if not isinstance(validation, LabelValidation):
        raise CalibrationError(
            "A model that tells real from fake is calibrated before it is exported: vfm calibrate CHECKPOINT DATA."
        )
    found = (
        _several(validation, outputs)
        if validation.multilabel
        else _single(validation, outputs, min_precision)
    )
    log.info(
        "Temperature %.3f, fitted on %d images: the expected calibration error goes from %.4f to %.4f.",
        found.rules.temperature,
        found.num_images,
        found.error_before,
        found.error_after,
    )
    return found


def tempered(scores: NDArray[Any], temperature: float, multilabel: bool) -> NDArray[np.float64]:
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
    fitted = tempered(scores, temperature, False)
    best = fitted.argmax(axis=1)
    right = best == truth
    thresholds: tuple[float, ...] | None = None
    shared: tuple[str, ...] = ()
    if least is not None:
        thresholds, shared = _precise(fitted.max(axis=1), best, right, validation.labels, least)
    return Calibration(
        ConfidenceRules(temperature=temperature, thresholds=thresholds),
        validation.num_images,
        calibration_error(scores.max(axis=1), right),
        calibration_error(fitted.max(axis=1), right),
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
    overall, closest = precision_cut(scores, right, least, _LEVEL)
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
            precision_cut(scores[own], right[own], least, _LEVEL) if own.any() else (None, overall)
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
    fitted = tempered(scores, temperature, True)
    there = np.asarray(truth.any(axis=0))
    thresholds = [
        best_f1(fitted[:, k], truth[:, k])[0] if there[k] else _APPLIES for k in range(len(there))
    ]
    absent = _absent(validation, there, _APPLIES)
    return Calibration(
        ConfidenceRules(temperature=temperature, thresholds=tuple(thresholds)),
        validation.num_images,
        _mean_error(scores, truth),
        _mean_error(fitted, truth),
        absent,
    )


def _boxes(validation: BoxValidation, outputs: Arrays) -> Calibration:
    classes = rankings(validation.truth, validation.found(outputs), len(validation.labels))
    there = np.array([ranking.num_true > 0 and ranking.right.any() for ranking in classes], bool)
    thresholds = [
        ranking.best_f1()[0] if found else THRESHOLD
        for ranking, found in zip(classes, there, strict=True)
    ]
    absent = _absent(validation, there, THRESHOLD)
    rules = ConfidenceRules(thresholds=tuple(thresholds))
    return Calibration(rules, validation.num_images, None, None, absent)


def _absent(validation: Validation, there: NDArray[np.bool_], threshold: float) -> tuple[str, ...]:
    names = tuple(name for name, found in zip(validation.labels, there, strict=True) if not found)
    if names:
        log.warning(
            "The %d validation images show none of %d labels, or none that is found; their threshold is %.2f: %s%s.",
            validation.num_images,
            len(names),
            threshold,
            ", ".join(names[:5]),
            ", ..." if len(names) > 5 else "",
        )
    return names


def _mean_error(scores: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """Of each label on its own: together, the many that hardly ever apply would hide the rest."""
    columns = zip(scores.T, truth.T, strict=True)
    return float(np.mean([calibration_error(chance, applies) for chance, applies in columns]))


def _logarithms(scores: NDArray[Any]) -> NDArray[np.float64]:
    return np.log(np.maximum(np.asarray(scores, np.float64), _TINY))


def _logits(scores: NDArray[Any]) -> NDArray[np.float64]:
    chance = np.clip(np.asarray(scores, np.float64), _EDGE, 1 - _EDGE)
    return np.log(chance) - np.log1p(-chance)
