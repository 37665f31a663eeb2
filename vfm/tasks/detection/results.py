"""Results of a split of images with boxes: COCO's average precision, thresholds, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vfm.data.dataset import Record
from vfm.data.detection.tiles import is_centered_in
from vfm.metrics.detection import (
    DetectedBoxes,
    TrueBoxes,
    compute_coco_metrics,
    count_confusions,
    estimate_ap50,
    match_detections,
)
from vfm.tasks.detection.page import write_box_page
from vfm.tasks.results import save_results


def join_boxes(
    records: Sequence[Record], values: Mapping[str, Any], columns: Sequence[int]
) -> tuple[list[TrueBoxes], list[DetectedBoxes]]:
    """Return the true boxes and the detected ones of each image.

    Args:
        records: Records of N images.
        values: `boxes`, `labels` and `scores`, each a sequence of the arrays of the images, in pixels of the original.
        columns: For each class of the data its index among the model's.
    """
    rows = zip(values["boxes"], values["labels"], values["scores"], strict=True)
    truth = [select_truth(record, columns) for record in records]
    pairs = zip(records, rows, strict=True)
    return truth, [select_detections(record, DetectedBoxes(*row)) for record, row in pairs]


def select_truth(record: Record, columns: Sequence[int]) -> TrueBoxes:
    """Return an image's true boxes in the model's classes; a tile ignores those that a neighbour answers for."""
    assert record.objects is not None
    assert isinstance(record.label, tuple)
    labels = np.array([columns[label] for label in record.label], np.int64)
    tile, ignored = record.objects.tile, record.objects.ignored
    ignored = ignored if tile is None else ignored | ~tile.is_core
    return TrueBoxes(record.objects.corners, labels, ignored, record.objects.areas)


def select_detections(record: Record, boxes: DetectedBoxes) -> DetectedBoxes:
    """Return the boxes that a model found in an image; of a tile those that it answers for."""
    tile = record.objects.tile if record.objects else None
    if tile is None:
        return boxes
    inside = is_centered_in(tile.core, boxes.corners)
    return DetectedBoxes(boxes.corners[inside], boxes.labels[inside], boxes.scores[inside])


def compute_box_metrics(
    truth: Sequence[TrueBoxes], detections: Sequence[DetectedBoxes], num_labels: int
) -> dict[str, float]:
    """Return the few metrics that every validation logs; 0 where there is nothing to find."""
    stats, _ = compute_coco_metrics(truth, detections, num_labels)
    return {name: stats[name] or 0.0 for name in ("AP", "AP50")}


def write_box_results(
    folder: Path,
    split: str,
    records: Sequence[Record],
    truth: Sequence[TrueBoxes],
    detections: Sequence[DetectedBoxes],
    labels: Sequence[str],
    more: Mapping[str, Any],
) -> None:
    """Add a split's results to `results.json`, and write its page and pictures beside it."""
    results = compute_box_results(truth, detections, labels) | dict(more)
    save_results(folder, split, results)
    write_box_page(folder, split, results, records, truth, detections, labels)


def compute_box_results(
    truth: Sequence[TrueBoxes], detections: Sequence[DetectedBoxes], labels: Sequence[str]
) -> dict[str, Any]:
    """Return every metric of a split, ready for JSON."""
    stats, per_class = compute_coco_metrics(truth, detections, len(labels))
    classes = match_detections(truth, detections, len(labels))
    best = [ranking.find_best_f1() for ranking in classes]
    parts = zip(labels, classes, per_class, best, strict=True)
    rows = [
        {
            "label": label,
            "num_boxes": ranking.num_true,
            "AP": ap,
            "best_threshold": threshold,
            "best_f1": f1,
        }
        for label, ranking, ap, (threshold, f1) in parts
    ]
    thresholds = [threshold for threshold, _ in best]
    return {
        "num_samples": len(truth),
        "num_boxes": sum(ranking.num_true for ranking in classes),
        **{name: value for name, value in stats.items() if name != "AP50"},
        "AP50": estimate_ap50(classes, truth) | {"value": stats["AP50"]},
        "per_class": rows,
        "confusion_matrix": count_confusions(truth, detections, thresholds).tolist(),
        "labels": list(labels),
        "curves": {
            label: ranking.pr_curve() for label, ranking in zip(labels, classes, strict=True)
        },
    }
