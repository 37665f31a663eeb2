"""Calibration of a detector: for each label the score threshold of the highest F1."""

from __future__ import annotations

import numpy as np
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.confidence import ConfidenceRules
from vfm_runtime.tasks.detection import THRESHOLD

from vfm.metrics.detection import match_detections
from vfm.tasks.calibration import (
    Calibration,
    list_absent,
    refuse_precision,
    require_enough_images,
)
from vfm.tasks.detection.validation import BoxValidation


def fit_boxes(
    images: BoxValidation, outputs: Arrays, min_precision: float | None = None
) -> Calibration:
    """Fit a threshold for each label, the score of the highest F1.

    Raises:
        CalibrationError: There are too few images, or a precision is asked for.
    """
    require_enough_images(images)
    refuse_precision(min_precision, "detection")
    classes = match_detections(images.truth, images.select_boxes(outputs), len(images.labels))
    seen = np.array([ranking.num_true > 0 and ranking.right.any() for ranking in classes], bool)
    thresholds = [
        ranking.find_best_f1()[0] if one else THRESHOLD
        for ranking, one in zip(classes, seen, strict=True)
    ]
    absent = list_absent(images, seen.tolist(), THRESHOLD)
    rules = ConfidenceRules(thresholds=tuple(thresholds))
    return Calibration(rules, images.num_images, None, None, absent)
