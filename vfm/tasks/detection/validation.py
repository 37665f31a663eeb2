"""Validation and calibration of detectors: COCO's average precision, score thresholds of the highest F1."""

from __future__ import annotations

from functools import cached_property

from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.confidence import ConfidenceRules
from vfm_runtime.tasks.detection import THRESHOLD

from vfm.data.detection.tiles import group_tiles
from vfm.metrics.detection import DetectedBoxes, TrueBoxes, match_detections
from vfm.tasks.calibration import Calibration, list_absent, refuse_precision, require_enough_images
from vfm.tasks.detection.results import compute_box_metrics, join_boxes, limit_boxes, select_truth
from vfm.tasks.labeled_images import ValidationError
from vfm.tasks.validation import Validation


class BoxValidation(Validation):
    """Images with boxes for a model that finds objects: COCO's `AP`."""

    metric = "AP"

    @cached_property
    def truth(self) -> list[TrueBoxes]:
        """The true boxes of each image."""
        records = self.images.source.records
        return [
            select_truth(photo, [records[index] for index in indices], self.columns)
            for photo, indices in group_tiles(records)
        ]

    def select_boxes(self, outputs: Arrays) -> list[DetectedBoxes]:
        """Return the boxes that were found in each image; of one in tiles, merged.

        Args:
            outputs: `boxes` [N, K, 4], `labels` and `scores` [N, K], a row for each image or tile.
        """
        return join_boxes(self.images.source.records, outputs, self.columns)[2]

    def measure(self, outputs: Arrays) -> float:
        """Average precision over IoU thresholds and labels that occur."""
        if not sum((~true.ignored).sum() for true in self.truth):
            raise ValidationError(
                f"There is not one box in the {len(self.truth)} images, so there is no AP. Give others with --data."
            )
        limit = limit_boxes(self.images.source.records)
        boxes = self.select_boxes(outputs)
        return compute_box_metrics(self.truth, boxes, len(self.labels), limit)["AP"]

    def fit_confidence(self, outputs: Arrays, *, min_precision: float | None = None) -> Calibration:
        """Fit a threshold for each label, the score of the highest F1."""
        require_enough_images(len(self.truth))
        refuse_precision(min_precision, "detection")
        classes = match_detections(self.truth, self.select_boxes(outputs), len(self.labels))
        seen = [bool(ranking.num_true and ranking.right.any()) for ranking in classes]
        thresholds = [
            ranking.find_best_f1()[0] if is_seen else THRESHOLD
            for ranking, is_seen in zip(classes, seen, strict=True)
        ]
        absent = list_absent(self.labels, seen, len(self.truth), THRESHOLD)
        rules = ConfidenceRules(thresholds=tuple(thresholds))
        return Calibration(rules, len(self.truth), None, None, absent)
