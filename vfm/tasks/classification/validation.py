"""Validation of models that label images: accuracy, or mean average precision where several labels may apply."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.confidence import ConfidenceRules, soften_scores

from vfm.data.records import list_labels
from vfm.tasks.calibration import Calibration, CalibrationOptions
from vfm.tasks.classification.calibration import fit_labels
from vfm.tasks.classification.groups import fit_label_groups
from vfm.tasks.classification.results import compute_label_metrics
from vfm.tasks.group_fit import GroupFit
from vfm.tasks.labeled_images import ValidationError
from vfm.tasks.results import OUT_OF_FOLD
from vfm.tasks.validation import Validation


class OutOfFoldValidation(Validation):
    """Training images with scores of heads that had not seen them: what calibrates a model of all images.

    Attributes:
        scores: Out-of-fold probabilities, float32 [N, C].
    """

    metric = OUT_OF_FOLD

    def __init__(
        self,
        labels: Sequence[str],
        scores: NDArray[Any],
        truth: NDArray[Any],
        *,
        multilabel: bool = False,
    ) -> None:
        self.labels, self.multilabel = tuple(labels), multilabel
        self.scores, self._truth = scores, truth

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.scores)

    @property
    def truth(self) -> NDArray[Any]:
        """The true label of each image, int64 [N]; or float32 [N, C] of zeros and ones where several may apply."""
        return self._truth

    def measure(self, outputs: Arrays) -> float:
        """Refuse: the model has learned from these images."""
        raise ValidationError("Out-of-fold scores calibrate; they measure no other outputs.")

    def fit_confidence(self, outputs: Arrays, *, min_precision: float | None = None) -> Calibration:
        """Fit a temperature, and thresholds for each label, to the out-of-fold scores, whatever the model gives."""
        return fit_labels(self, {"scores": self.scores}, min_precision)

    def fit_groups(
        self,
        outputs: Arrays,
        rules: ConfidenceRules,
        groups: Sequence[str],
        options: CalibrationOptions,
    ) -> GroupFit:
        """Fit thresholds by group to the out-of-fold scores."""
        scores = soften_scores(self.scores, rules.temperature, multilabel=self.multilabel)
        return fit_label_groups(scores, self.truth, self.labels, rules, groups, options)


class LabelValidation(Validation):
    """Labelled images for a model that labels images: `accuracy`, or where several labels may apply `mAP`."""

    @property
    def metric(self) -> str:  # type: ignore[override]
        """`accuracy` or `mAP`."""
        return "mAP" if self.multilabel else "accuracy"

    @cached_property
    def truth(self) -> NDArray[Any]:
        """The true label of each image, int64 [N]; or float32 [N, C] of zeros and ones where several may apply."""
        each = [[self.columns[k] for k in list_labels(r)] for r in self.images.source.records]
        if not self.multilabel:
            return np.array([label for (label,) in each], np.int64)
        truth = np.zeros((self.num_images, len(self.labels)), np.float32)
        for row, labels in zip(truth, each, strict=True):
            row[labels] = 1
        return truth

    def measure(self, outputs: Arrays) -> float:
        """Accuracy, or the mean average precision over labels that occur."""
        value = compute_label_metrics(outputs["scores"], self.truth)[self.metric]
        if np.isnan(value):
            raise ValidationError(
                f"No label applies to any of the {self.num_images} images, so there is no {self.metric}. Give others "
                "with --data."
            )
        return value

    def fit_confidence(self, outputs: Arrays, *, min_precision: float | None = None) -> Calibration:
        """Fit a temperature, and thresholds for each label."""
        return fit_labels(self, outputs, min_precision)

    def fit_groups(
        self,
        outputs: Arrays,
        rules: ConfidenceRules,
        groups: Sequence[str],
        options: CalibrationOptions,
    ) -> GroupFit:
        """Fit thresholds by group."""
        scores = soften_scores(outputs["scores"], rules.temperature, multilabel=self.multilabel)
        return fit_label_groups(scores, self.truth, self.labels, rules, groups, options)
