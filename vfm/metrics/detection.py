"""Detection metrics: COCO's average precision, precision-recall curves, the threshold of best F1, and confusions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.detection import compute_iou

from vfm.metrics.intervals import compute_interval

IOU = 0.5
"""Least intersection over union of a detection that is right, but for COCO's AP."""

MAX_BOXES = 100
"""Most detections of one class in an image that COCO's metrics count, the best ones."""

_STATS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
_IGNORED, _WRONG = -2, -1
_NUM_POINTS = 200
_BOXES_AT_ONCE = 50_000


class TrueBoxes(NamedTuple):
    """The true boxes of an image. M boxes."""

    corners: NDArray[np.float32]
    """[M, 4], left, top, right, bottom in pixels."""
    labels: NDArray[np.int64]
    """[M]."""
    ignored: NDArray[np.bool_]
    """[M], crowds and the like: a detection there counts neither for nor against."""
    areas: NDArray[np.float32] | None = None
    """[M], areas of the objects in pixels, by which they are small, medium or large; None for those of the boxes."""


class DetectedBoxes(NamedTuple):
    """The boxes that a model detected in an image. K boxes, best first."""

    corners: NDArray[np.float32]
    """[K, 4], left, top, right, bottom in pixels."""
    labels: NDArray[np.int64]
    """[K]."""
    scores: NDArray[np.float32]
    """[K]."""


class ClassDetections(NamedTuple):
    """Every detection of one class, best first. D detections."""

    scores: NDArray[np.float32]
    """[D]."""
    right: NDArray[np.bool_]
    """[D], whether it has a box that no better detection had."""
    image: NDArray[np.int64]
    """[D], index of its image."""
    num_true: int
    """Boxes of the class to be detected."""

    def pr_curve(self) -> list[tuple[float, float]]:
        """Points (recall, precision), from the best detection on."""
        recall, precision = self._compute_levels()
        if not len(recall):
            return [(0.0, 0.0), (1.0, 0.0)]
        picks = np.unique(np.linspace(0, len(recall) - 1, _NUM_POINTS).astype(int))
        return list(zip(recall[picks].tolist(), precision[picks].tolist(), strict=True))

    def find_best_f1(self) -> tuple[float, float]:
        """The threshold of the highest F1, and that F1."""
        recall, precision = self._compute_levels()
        if not len(recall) or not self.right.any():
            return 0.5, 0.0
        f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-9)
        best = int(f1.argmax())
        return float(self.scores[best]), float(f1[best])

    def _compute_levels(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Recall and precision at each detection, [D]."""
        hits = np.cumsum(self.right)
        return hits / max(self.num_true, 1), hits / np.arange(1, len(hits) + 1)


def compute_coco_metrics(
    truth: Sequence[TrueBoxes],
    detections: Sequence[DetectedBoxes],
    num_labels: int,
    max_boxes: int = MAX_BOXES,
) -> tuple[dict[str, float | None], list[float | None]]:
    """COCO's twelve metrics of a list of images, and AP by class; None where there is nothing to detect.

    Args:
        truth: True boxes, one entry an image.
        detections: Detected boxes of the same images.
        num_labels: Number of classes of the model.
        max_boxes: Most detections of a class in an image that count.
    """
    # Its import takes a while, and only evaluation needs it.
    from faster_coco_eval import COCO, COCOeval_faster

    silent: Any = lambda *_: None  # noqa: E731
    true, detected = _join_images(truth), _join_images(detections)
    detected = _select_best(detected, max_boxes)
    parts = []
    images = [{"id": image} for image in range(1, len(truth) + 1)]
    # Classes are judged apart. The library wants a dictionary for every box, and all at once would fill gigabytes.
    # Classes that have few boxes together, as far as one class alone does not have many.
    counts = np.bincount(detected.labels, minlength=num_labels).cumsum()
    group = (counts - 1).clip(min=0) // _BOXES_AT_ONCE
    for number in np.unique(group):
        classes = np.flatnonzero(group == number).tolist()
        content = {
            "images": images,
            "categories": [{"id": label + 1, "name": str(label)} for label in classes],
            "annotations": [
                row | {"id": index, "area": area, "iscrowd": int(ignored)}
                for index, (row, area, ignored) in enumerate(
                    _list_coco_rows(true, classes, true.areas, true.last), start=1
                )
            ],
        }
        gt = COCO(content, print_function=silent)
        # An outline for each box, which the library would add, takes as much memory as the box.
        rows = [
            row | {"score": score, "segmentation": None}
            for row, score in _list_coco_rows(detected, classes, detected.last)
        ]
        dt = gt.loadRes(rows)
        evaluation = COCOeval_faster(gt, dt, "bbox", print_function=silent)
        evaluation.params.maxDets = [1, 10, max_boxes]
        sizes = evaluation.params.areaRng
        # The library keeps some hundred bytes of each box for each range of sizes, in which boxes are judged apart too.
        at_once = len(sizes) if len(rows) <= 2 * _BOXES_AT_ONCE else 1
        of_sizes = []
        for start in range(0, len(sizes), at_once):
            evaluation.params.areaRng = sizes[start : start + at_once]
            evaluation.evaluate()
            evaluation.accumulate()
            of_sizes.append([evaluation.eval[name] for name in ("precision", "recall")])
        parts.append([np.concatenate(p, axis=-2) for p in zip(*of_sizes, strict=True)])
    precision, recall = (np.concatenate(p, axis=-3) for p in zip(*parts, strict=True))
    evaluation.params.areaRng = sizes
    evaluation.eval |= {"precision": precision, "recall": recall}
    evaluation.summarize()
    # COCO writes -1 for what is not defined.
    stats = {
        name: None if value < 0 else float(value)
        for name, value in zip(_STATS, evaluation.stats[: len(_STATS)], strict=True)
    }
    per_class = [precision[:, :, k, 0, -1] for k in range(num_labels)]
    return stats, [float(p[p > -1].mean()) if (p > -1).any() else None for p in per_class]


class _FlatBoxes(NamedTuple):
    """The boxes of all images in one array each. B boxes."""

    image: NDArray[np.int64]
    """[B], index of the image."""
    corners: NDArray[np.float32]
    """[B, 4]."""
    labels: NDArray[np.int64]
    """[B]."""
    last: NDArray[Any]
    """[B], `ignored` or `scores`."""
    areas: NDArray[np.float32]
    """[B], in pixels."""


def _join_images(images: Sequence[TrueBoxes] | Sequence[DetectedBoxes]) -> _FlatBoxes:
    columns: list[list[NDArray[Any]]] = [[], [], [], []]
    for boxes in images:
        areas = boxes.areas if isinstance(boxes, TrueBoxes) else None
        areas = _compute_areas(boxes.corners) if areas is None else areas
        for column, value in zip(columns, (*boxes[:3], areas), strict=True):
            column.append(np.asarray(value))
    corners, labels, last, areas = (np.concatenate(column) for column in columns)
    image = np.repeat(np.arange(len(images)), [len(boxes.labels) for boxes in images])
    return _FlatBoxes(image, corners.reshape(-1, 4), labels, last, areas)


def _select_best(boxes: _FlatBoxes, most: int) -> _FlatBoxes:
    """The best detections of each class in each image, as many as COCO looks at."""
    order = np.lexsort((-boxes.last, boxes.labels, boxes.image))
    is_first = np.ones(len(order), bool)
    is_first[1:] = np.diff(boxes.image[order]) != 0
    is_first[1:] |= np.diff(boxes.labels[order]) != 0
    position = np.arange(len(order))
    rank = position - np.maximum.accumulate(np.where(is_first, position, 0))
    chosen = order[rank < most]
    return _FlatBoxes._make(column[chosen] for column in boxes)


def _list_coco_rows(
    boxes: _FlatBoxes, classes: Sequence[int], *columns: NDArray[Any]
) -> Iterable[tuple[Any, ...]]:
    """Each box of some classes as COCO's JSON has it, and its values of other columns."""
    chosen = np.isin(boxes.labels, classes)
    image, label = (boxes.image[chosen] + 1).tolist(), (boxes.labels[chosen] + 1).tolist()
    corners = boxes.corners[chosen].astype(float)
    corners[:, 2:] -= corners[:, :2]
    others = (column[chosen].tolist() for column in columns)
    for i, k, box, *values in zip(image, label, corners.tolist(), *others, strict=True):
        yield {"image_id": i, "category_id": k, "bbox": box}, *values


def match_detections(
    truth: Sequence[TrueBoxes],
    detections: Sequence[DetectedBoxes],
    num_labels: int,
    iou: float = IOU,
) -> list[ClassDetections]:
    """The detections of each class, best first, and which of them are right.

    Args:
        truth: True boxes, one entry an image.
        detections: Detected boxes of the same images.
        num_labels: Number of classes of the model.
        iou: Least overlap of a right detection.
    """
    # An empty row for classes without detections.
    empty = (np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, np.int64))
    rows: list[list[tuple[NDArray[Any], ...]]] = [[empty] for _ in range(num_labels)]
    number = np.zeros(num_labels, np.int64)
    for index, (true, boxes) in enumerate(zip(truth, detections, strict=True)):
        np.add.at(number, true.labels[~true.ignored], 1)
        matched = match_image(true, boxes, iou)
        for label in np.unique(boxes.labels).tolist():
            counted = (boxes.labels == label) & (matched != _IGNORED)
            right = matched[counted] >= 0
            rows[label].append((boxes.scores[counted], right, np.full(len(right), index)))
    classes = []
    for parts, num_true in zip(rows, number.tolist(), strict=True):
        scores, right, image = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(-scores, kind="stable")
        classes.append(ClassDetections(scores[order], right[order], image[order], num_true))
    return classes


def match_image(true: TrueBoxes, boxes: DetectedBoxes, iou: float = IOU) -> NDArray[np.int64]:
    """Give the detections of an image, the best first, the true boxes of their class.

    Args:
        true: True boxes of the image.
        boxes: Detected boxes of the image.
        iou: Least overlap of a right detection.

    Returns:
        [K], 0 and above for a right detection, -1 for a false one, -2 for one that does not count.
    """
    matched = np.full(len(boxes.labels), _WRONG)
    for label in np.unique(boxes.labels).tolist():
        rows, of_label = np.flatnonzero(boxes.labels == label), true.labels == label
        rows = rows[np.argsort(-boxes.scores[rows], kind="stable")]
        ignored = true.ignored[of_label]
        table = compute_overlaps(boxes.corners[rows], true.corners[of_label], ignored)
        matched[rows] = assign_boxes(table, ignored, iou)
    return matched


def count_confusions(
    truth: Sequence[TrueBoxes], detections: Sequence[DetectedBoxes], thresholds: Sequence[float]
) -> NDArray[np.int64]:
    """True class by detected class at the thresholds of C classes, [C + 1, C + 1]; the last ones are background."""
    least = np.asarray(thresholds)
    background = len(least)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    for true, boxes in zip(truth, detections, strict=True):
        sure = boxes.scores >= least[boxes.labels]
        order = np.argsort(-boxes.scores[sure], kind="stable")
        labels = boxes.labels[sure][order]
        table = compute_overlaps(boxes.corners[sure][order], true.corners, true.ignored)
        # A crowd takes in detections of its class alone, as for AP.
        table[true.ignored & (labels[:, None] != true.labels)] = 0
        matched = assign_boxes(table, true.ignored, IOU)
        rows = np.where(matched >= 0, true.labels[matched] if len(true.labels) else 0, background)
        counted = matched != _IGNORED
        np.add.at(matrix, (rows[counted], labels[counted]), 1)
        missed = ~true.ignored & ~np.isin(np.arange(len(true.labels)), matched)
        matrix[:background, background] += np.bincount(true.labels[missed], minlength=background)
    return matrix


def compute_ap50(
    classes: Sequence[ClassDetections], images: Sequence[TrueBoxes], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AP at an IoU of 0.5 where image i counts `counts[b, i]` times, [B]; the mean over classes that occur.

    Args:
        classes: Detections of each class, as `match_detections` returns them.
        images: True boxes, one entry an image.
        counts: int [B, N], how often each image counts.
    """
    total = np.zeros(len(counts))
    defined = np.zeros(len(counts))
    for label, detections in enumerate(classes):
        true = counts @ np.array([((t.labels == label) & ~t.ignored).sum() for t in images])
        weight = counts[:, detections.image]
        hits = np.cumsum(weight * detections.right, axis=1)
        precision = hits / np.maximum(np.cumsum(weight, axis=1), 1e-9)
        # Precision at a recall is the best at that or a higher one, as COCO and VOC have it.
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        gained = (weight * detections.right * envelope).sum(axis=1)
        occurs = true > 0
        total[occurs] += gained[occurs] / true[occurs]
        defined += occurs
    return np.where(defined > 0, total / np.maximum(defined, 1), np.nan)


def estimate_ap50(
    classes: Sequence[ClassDetections], images: Sequence[TrueBoxes]
) -> dict[str, float | None]:
    """AP at an IoU of 0.5 with its 95 % interval over images, ready for JSON."""
    once = np.ones((1, len(images)), np.int64)
    value = float(compute_ap50(classes, images, once)[0])
    if len(images) < 2 or np.isnan(value):
        return {"value": None if np.isnan(value) else value, "low": None, "high": None}
    interval = compute_interval(
        lambda counts: compute_ap50(classes, images, counts), once[0], num_resamples=200
    )
    return dict(interval.to_dict())


def _compute_areas(corners: NDArray[Any]) -> NDArray[Any]:
    """Areas [M] of boxes [M, 4]."""
    areas: NDArray[Any] = (corners[:, 2:] - corners[:, :2]).clip(min=0).prod(axis=1)
    return areas


def compute_overlaps(
    detected: NDArray[np.float32], true: NDArray[np.float32], ignored: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Overlap of K detections with M boxes, [K, M]: IoU; with ignored ones the part of the detection, as in COCO."""
    table: NDArray[np.float64] = np.array(compute_iou(detected, true), np.float64)
    crowds = true[ignored]
    start = np.maximum(detected[:, None, :2], crowds[None, :, :2])
    end = np.minimum(detected[:, None, 2:], crowds[None, :, 2:])
    shared = (end - start).clip(min=0).prod(axis=2)
    table[:, ignored] = shared / _compute_areas(detected).clip(min=1e-9)[:, None]
    return table


def assign_boxes(
    table: NDArray[np.float64], ignored: NDArray[np.bool_], iou: float
) -> NDArray[np.int64]:
    """Give each detection in turn the free box that it fits best, as COCO does.

    Args:
        table: [K, M], overlaps; detections best first.
        ignored: [M], boxes that any number of detections may have.
        iou: Least overlap of a match.

    Returns:
        [K], the index of the box, -1 for none, -2 for an ignored one.
    """
    matched = np.full(len(table), _WRONG)
    free = table * ~ignored
    for row in np.flatnonzero((table >= iou).any(axis=1)) if table.size else ():
        best = int(free[row].argmax())
        if free[row, best] >= iou:
            matched[row] = best
            free[:, best] = 0
        elif (table[row] * ignored).max() >= iou:
            matched[row] = _IGNORED
    return matched
