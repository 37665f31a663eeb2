"""Validation of models that find objects: COCO's average precision."""

from __future__ import annotations

from functools import cached_property

from vfm_runtime.tasks.base import Arrays

from vfm.metrics.detection import DetectedBoxes, TrueBoxes
from vfm.tasks.detection.results import compute_box_metrics, join_boxes, select_truth
from vfm.tasks.labelled_images import ValidationError
from vfm.tasks.validation import Validation


class BoxValidation(Validation):
    """Images with boxes for a model that finds objects: COCO's `AP`."""

    metric = "AP"

    @cached_property
    def truth(self) -> list[TrueBoxes]:
        """The true boxes of each image."""
        return [select_truth(record, self.columns) for record in self.images.source.records]

    def select_boxes(self, outputs: Arrays) -> list[DetectedBoxes]:
        """Return the boxes that were found in each image.

        Args:
            outputs: `boxes` [N, K, 4], `labels` and `scores` [N, K].
        """
        return join_boxes(self.images.source.records, outputs, self.columns)[1]

    def measure(self, outputs: Arrays) -> float:
        """Average precision over IoU thresholds and labels that occur."""
        if not sum((~true.ignored).sum() for true in self.truth):
            raise ValidationError(
                f"There is not one box in the {self.num_images} images, so there is no AP. Give others with --data."
            )
        return compute_box_metrics(self.truth, self.select_boxes(outputs), len(self.labels))["AP"]
