"""Calibration of classifiers: temperature scaling, which makes scores probabilities, and score thresholds by label."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.confidence import ConfidenceRules, soften_scores

from vfm.metrics.calibration import (
    find_best_f1,
    find_precision_cut,
    fit_score_temperature,
    measure_score_error,
)
from vfm.tasks.calibration import (
    Calibration,
    CalibrationError,
    list_absent,
    list_some,
    refuse_precision,
    require_enough_images,
)
from vfm.tasks.validation import Validation

_LEVEL = 0.95
"""Confidence at which a precision is proved."""
_APPLIES = 0.5

log = logging.getLogger(__name__)


def fit_labels(
    images: Validation, outputs: Arrays, min_precision: float | None = None
) -> Calibration:
    """Fit a temperature, and thresholds for each label.

    Of a model that gives one label an image: the least score at which answers are right often enough, where that is
    asked for. Where several labels may apply: the score of the highest F1.

    Raises:
        CalibrationError: There are too few images, or nothing proves such a fraction.
    """
    require_enough_images(images.num_images)
    if images.multilabel:
        refuse_precision(min_precision, "multilabel")
        calibration = _fit_multilabel(images, outputs["scores"])
    else:
        calibration = _fit_single_label(images, outputs["scores"], min_precision)
    log.info(
        "Temperature %.3f, fitted on %d images: the expected calibration error goes from %.4f to %.4f.",
        calibration.rules.temperature,
        calibration.num_images,
        calibration.error_before,
        calibration.error_after,
    )
    return calibration


def _fit_single_label(
    images: Validation, scores: NDArray[Any], min_precision: float | None
) -> Calibration:
    temperature = fit_score_temperature(scores, images.truth)
    chance = soften_scores(scores, temperature)
    best = chance.argmax(axis=1)
    right = best == images.truth
    thresholds: tuple[float, ...] | None = None
    shared: tuple[str, ...] = ()
    if min_precision is not None:
        thresholds, shared = _fit_thresholds(
            chance.max(axis=1), best, right, images.labels, min_precision
        )
    return Calibration(
        ConfidenceRules(temperature=temperature, thresholds=thresholds),
        images.num_images,
        measure_score_error(scores, images.truth),
        measure_score_error(chance, images.truth),
        shared,
        min_precision,
    )


def _fit_thresholds(
    scores: NDArray[Any],
    best: NDArray[np.int64],
    right: NDArray[np.bool_],
    labels: tuple[str, ...],
    least: float,
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Return a threshold for each label that proves a precision, and the labels that share that of all."""
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
    for index, label in enumerate(labels):
        mine = best == index
        proved, closest = (
            find_precision_cut(scores[mine], right[mine], least, _LEVEL)
            if mine.any()
            else (None, overall)
        )
        # A label with too few answers to prove a threshold of its own shares the one of all labels together, or takes
        # the one that came closest where that is higher.
        least_score = max(overall.threshold, closest.threshold)
        thresholds.append(proved.threshold if proved else least_score)
        if proved is None:
            shared.append(label)
    if shared:
        log.warning(
            "Of %d of the %d labels there are too few answers, or too few right ones, to prove a precision of %.1f %%; "
            "they have that of all labels together, %.3f, or a higher one: %s.",
            *(len(shared), len(labels), 100 * least, overall.threshold, list_some(shared)),
        )
    return tuple(thresholds), tuple(shared)


def _fit_multilabel(images: Validation, scores: NDArray[Any]) -> Calibration:
    truth = images.truth.astype(bool)
    temperature = fit_score_temperature(scores, truth)
    chance = soften_scores(scores, temperature, multilabel=True)
    occurs = np.asarray(truth.any(axis=0)).tolist()
    thresholds = [
        find_best_f1(chance[:, k], truth[:, k])[0] if occurs[k] else _APPLIES
        for k in range(len(occurs))
    ]

    return Calibration(
        ConfidenceRules(temperature=temperature, thresholds=tuple(thresholds)),
        images.num_images,
        measure_score_error(scores, truth),
        measure_score_error(chance, truth),
        list_absent(images.labels, occurs, images.num_images, _APPLIES),
    )
