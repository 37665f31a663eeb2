"""Results of a split of images with boxes: COCO's average precision, thresholds, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.tasks.tiling import ScoredBoxes, merge_tiles

from vfm.data.detection.dataset import load_pixels
from vfm.data.detection.tiles import get_region, group_tiles, is_centered_in
from vfm.data.records import Record
from vfm.metrics.detection import (
    MAX_BOXES,
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
) -> tuple[list[Record], list[TrueBoxes], list[DetectedBoxes]]:
    """Return each image with its true boxes and the detected ones; of an image in tiles, those of its tiles merged.

    Args:
        records: Records of N images, or tiles.
        values: `boxes`, `labels` and `scores`, each a sequence of the arrays of the images, in pixels of the original.
        columns: For each class of the data its index among the model's.
    """
    photos, truth, detections = [], [], []
    for photo, indices in group_tiles(records):
        tiles = [records[index] for index in indices]
        photos.append(photo)
        truth.append(select_truth(photo, tiles, columns))
        detections.append(merge_detections(tiles, values, indices))
    return photos, truth, detections


def select_truth(photo: Record, tiles: Sequence[Record], columns: Sequence[int]) -> TrueBoxes:
    """Return an image's true boxes in the model's classes; those in none of its tiles that were looked at are ignored.

    Args:
        photo: Record of the whole image.
        tiles: Records of its tiles, which may be fewer than it has where batches are limited; without
            tiles the photo's own record.
        columns: For each class of the data its index among the model's.
    """
    assert photo.objects is not None
    assert isinstance(photo.label, tuple)
    labels = np.array([columns[label] for label in photo.label], np.int64)
    corners, ignored = photo.objects.corners, photo.objects.ignored
    if tiles[0] is not photo:
        regions = [np.array(get_region(tile), np.float64) for tile in tiles]
        ignored = ignored | ~np.any([is_centered_in(region, corners) for region in regions], axis=0)
    return TrueBoxes(corners, labels, ignored, photo.objects.areas)


def merge_detections(
    tiles: Sequence[Record], values: Mapping[str, Any], indices: Sequence[int]
) -> DetectedBoxes:
    """Return the boxes that a model found in an image; of tiles merged, as in production.

    Args:
        tiles: Records of the image's tiles; of one that is whole, its own.
        values: `boxes`, `labels` and `scores` of all records, as of `join_boxes`.
        indices: Where the tiles are among all records.
    """
    parts = [
        ScoredBoxes(*(values[name][i] for name in ("boxes", "labels", "scores"))) for i in indices
    ]
    if tiles[0].objects is None or tiles[0].objects.tile is None:
        return DetectedBoxes(*parts[0])
    return DetectedBoxes(*merge_tiles([get_region(tile) for tile in tiles], parts))


def limit_boxes(records: Sequence[Record]) -> int:
    """Return how many detections of a class in an image AP counts: COCO's 100, for each tile of a photo in tiles."""
    tiles = [len(indices) for _, indices in group_tiles(records)]
    return MAX_BOXES * max(tiles, default=1)


def warn_of_crowds(records: Sequence[Record]) -> None:
    """Warn where images have more objects of one class than AP counts detections."""
    limit = limit_boxes(records)
    counts = {}
    for photo, _ in group_tiles(records):
        if photo.objects is not None and isinstance(photo.label, tuple) and photo.label:
            labels = np.array(photo.label)[~photo.objects.ignored]
            counts[photo.name] = int(np.bincount(labels, minlength=1).max())
    crowded = [name for name, count in counts.items() if count > limit]
    if crowded:
        rank_zero_warn(
            f"{len(crowded)} images have more than {limit} objects of one class, such as {crowded[0]} with "
            f"{counts[crowded[0]]}: AP counts the best {limit} boxes of a class in an image, as COCO does, and cannot "
            "reach 1. Train with tiles (--data.tile), each of which adds as many, or go by F1, which counts all."
        )


def warn_of_queries(records: Sequence[Record], max_objects: int | None) -> None:
    """Warn where images, or tiles of them, show more objects than the head can find in one."""
    if max_objects is None:
        return
    counts = [int((~record.objects.ignored).sum()) if record.objects else 0 for record in records]
    crowded = [index for index, count in enumerate(counts) if count > max_objects]
    if crowded:
        example = f"{records[crowded[0]].name} with {counts[crowded[0]]}"
        rank_zero_warn(
            f"{len(crowded)} of {len(records)} images or tiles show more objects than the {max_objects} that the head "
            f"can find in one, such as {example}. Train with more (--model.head.num_queries {max(counts)}; of a "
            "DenseHead, --model.head.max_boxes), or with smaller tiles (--data.tile)."
        )


def compute_box_metrics(
    truth: Sequence[TrueBoxes],
    detections: Sequence[DetectedBoxes],
    num_labels: int,
    max_boxes: int = MAX_BOXES,
) -> dict[str, float]:
    """Return the few metrics that every validation logs; 0 where there is nothing to find."""
    stats, _ = compute_coco_metrics(truth, detections, num_labels, max_boxes)
    return {name: stats[name] or 0.0 for name in ("AP", "AP50")}


def write_box_results(
    folder: Path,
    split: str,
    records: Sequence[Record],
    truth: Sequence[TrueBoxes],
    detections: Sequence[DetectedBoxes],
    labels: Sequence[str],
    more: Mapping[str, Any],
    max_boxes: int = MAX_BOXES,
    value_range: ValueRange | None = None,
) -> None:
    """Add a split's results to `results.json`, and write its page and pictures beside it."""
    results = compute_box_results(truth, detections, labels, max_boxes) | dict(more)
    save_results(folder, split, results)
    open_picture = partial(load_pixels, value_range=value_range)
    write_box_page(folder, split, results, records, truth, detections, labels, open_picture)


def compute_box_results(
    truth: Sequence[TrueBoxes],
    detections: Sequence[DetectedBoxes],
    labels: Sequence[str],
    max_boxes: int = MAX_BOXES,
) -> dict[str, Any]:
    """Return every metric of a split, ready for JSON; `AR_100` counts `max_boxes` where these are more."""
    stats, per_class = compute_coco_metrics(truth, detections, len(labels), max_boxes)
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
        "max_boxes": max_boxes,
        **{name: value for name, value in stats.items() if name != "AP50"},
        "AP50": estimate_ap50(classes, truth) | {"value": stats["AP50"]},
        "per_class": rows,
        "confusion_matrix": count_confusions(truth, detections, thresholds).tolist(),
        "labels": list(labels),
        "curves": {
            label: ranking.pr_curve() for label, ranking in zip(labels, classes, strict=True)
        },
    }
