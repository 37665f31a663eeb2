"""How well boxes were found: COCO's average precision, curves, thresholds, confusions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.detection import compute_iou

from vfm.metrics.intervals import bootstrap

IOU = 0.5
"""Least intersection over union at which a box is taken to be found, but for COCO's AP."""

_STATS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
_IGNORED, _WRONG = -2, -1
_NUM_POINTS = 200


class Truth(NamedTuple):
    """The true boxes of an image. M boxes."""

    corners: NDArray[np.float32]
    """[M, 4], left, top, right, bottom in pixels."""
    labels: NDArray[np.int64]
    """[M]."""
    ignored: NDArray[np.bool_]
    """[M], crowds and the like: an answer there counts neither for nor against."""


class Found(NamedTuple):
    """The boxes that a model found in an image. K boxes, best first."""

    corners: NDArray[np.float32]
    """[K, 4]."""
    labels: NDArray[np.int64]
    """[K]."""
    scores: NDArray[np.float32]
    """[K]."""


class ClassRanking(NamedTuple):
    """Every answer of one class, best first. D answers."""

    scores: NDArray[np.float32]
    """[D]."""
    right: NDArray[np.bool_]
    """[D], whether it found a box that no better answer had found."""
    image: NDArray[np.int64]
    """[D], index of its image."""
    num_true: int
    """Boxes of the class to be found."""

    def curve(self) -> list[tuple[float, float]]:
        """Points (recall, precision), from the best answer on."""
        recall, precision = self._levels()
        if not len(recall):
            return [(0.0, 0.0), (1.0, 0.0)]
        kept = np.unique(np.linspace(0, len(recall) - 1, _NUM_POINTS).astype(int))
        return list(zip(recall[kept].tolist(), precision[kept].tolist(), strict=True))

    def best_f1(self) -> tuple[float, float]:
        """The threshold of the highest F1, and that F1."""
        recall, precision = self._levels()
        if not len(recall) or not self.right.any():
            return 0.5, 0.0
        f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-9)
        best = int(f1.argmax())
        return float(self.scores[best]), float(f1[best])

    def _levels(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        hits = np.cumsum(self.right)
        return hits / max(self.num_true, 1), hits / np.arange(1, len(hits) + 1)


def coco_metrics(
    truth: Sequence[Truth], found: Sequence[Found], num_labels: int
) -> tuple[dict[str, float | None], list[float | None]]:
    """COCO's twelve figures, and AP by class; None where there is nothing to find.

    Args:
        truth: Of each image.
        found: Of the same images.
        num_labels: Number of classes.
    """
    # Its import takes a while, and only evaluation needs it.
    from faster_coco_eval import COCO, COCOeval_faster

    silent: Any = lambda *_: None  # noqa: E731
    content = _dataset(truth, num_labels)
    gt = COCO(content, print_function=silent)
    dt = gt.loadRes(list(_answers(found)))
    evaluation = COCOeval_faster(gt, dt, "bbox", print_function=silent)
    evaluation.run()
    stats = {
        name: _defined(v) for name, v in zip(_STATS, evaluation.stats[: len(_STATS)], strict=True)
    }
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = [precision[:, :, k] for k in range(num_labels)]
    return stats, [_defined(p[p > -1].mean() if (p > -1).any() else -1) for p in per_class]


def rankings(
    truth: Sequence[Truth], found: Sequence[Found], num_labels: int, iou: float = IOU
) -> list[ClassRanking]:
    """The answers of each class, best first, and which of them are right.

    Args:
        truth: Of each image.
        found: Of the same images.
        num_labels: Number of classes.
        iou: Least overlap of a right answer.
    """
    rows: list[list[tuple[NDArray[Any], ...]]] = [[] for _ in range(num_labels)]
    number = np.zeros(num_labels, np.int64)
    for index, (true, answer) in enumerate(zip(truth, found, strict=True)):
        np.add.at(number, true.labels[~true.ignored], 1)
        for label in np.unique(answer.labels).tolist():
            own, there = answer.labels == label, true.labels == label
            scores = answer.scores[own]
            order = np.argsort(-scores, kind="stable")
            table = compute_iou(answer.corners[own][order], true.corners[there])
            matched = assign(table, true.ignored[there], iou)
            counted = matched != _IGNORED
            right = matched[counted] >= 0
            rows[label].append((scores[order][counted], right, np.full(len(right), index)))
    return [_ranked(parts, int(n)) for parts, n in zip(rows, number, strict=True)]


def confusion(
    truth: Sequence[Truth], found: Sequence[Found], thresholds: Sequence[float]
) -> NDArray[np.int64]:
    """True class by answered class, [C + 1, C + 1]; the last row and column are background.

    Args:
        truth: Of each image.
        found: Of the same images.
        thresholds: Least score of an answer, of each class.
    """
    least = np.asarray(thresholds)
    background = len(least)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    for true, answer in zip(truth, found, strict=True):
        kept = answer.scores >= least[answer.labels]
        order = np.argsort(-answer.scores[kept], kind="stable")
        labels = answer.labels[kept][order]
        matched = assign(compute_iou(answer.corners[kept][order], true.corners), true.ignored, IOU)
        rows = np.where(matched >= 0, true.labels[matched] if len(true.labels) else 0, background)
        counted = matched != _IGNORED
        np.add.at(matrix, (rows[counted], labels[counted]), 1)
        missed = ~true.ignored & ~np.isin(np.arange(len(true.labels)), matched)
        matrix[:background, background] += np.bincount(true.labels[missed], minlength=background)
    return matrix


def ap50_samples(
    classes: Sequence[ClassRanking], images: Sequence[Truth], num_resamples: int, seed: int
) -> NDArray[np.float64]:
    """AP at an IoU of 0.5 over images drawn with replacement, [B].

    The same seed draws the same images, so that two models on one set can be compared draw by draw.

    Args:
        classes: Of `rankings`.
        images: The true boxes of each image.
        num_resamples: B.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(images), np.full(len(images), 1 / len(images)), num_resamples)
    return ap50(classes, images, draws)


def ap50(
    classes: Sequence[ClassRanking], images: Sequence[Truth], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AP at an IoU of 0.5 where image i counts `counts[b, i]` times, [B]; the mean over classes that are there."""
    total = np.zeros(len(counts))
    defined = np.zeros(len(counts))
    for label, ranking in enumerate(classes):
        of = np.array([((t.labels == label) & ~t.ignored).sum() for t in images])
        true = counts @ of
        weight = counts[:, ranking.image] if len(ranking.image) else np.zeros((len(counts), 0))
        hits = np.cumsum(weight * ranking.right, axis=1)
        precision = hits / np.maximum(np.cumsum(weight, axis=1), 1e-9)
        # Precision at a recall is the best at that or a higher one, as COCO and VOC have it.
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        gained = (weight * ranking.right * envelope).sum(axis=1)
        there = true > 0
        total[there] += gained[there] / true[there]
        defined += there
    return np.where(defined > 0, total / np.maximum(defined, 1), np.nan)


def ap50_interval(
    classes: Sequence[ClassRanking], images: Sequence[Truth]
) -> dict[str, float | None]:
    """AP at an IoU of 0.5 with its 95 % interval over images, ready for JSON."""
    once = np.ones((1, len(images)), np.int64)
    value = float(ap50(classes, images, once)[0])
    if len(images) < 2 or np.isnan(value):
        return {"value": None if np.isnan(value) else value, "low": None, "high": None}
    interval = bootstrap(lambda counts: ap50(classes, images, counts), once[0], num_resamples=200)
    return dict(interval.to_dict())


def assign(table: NDArray[np.float64], ignored: NDArray[np.bool_], iou: float) -> NDArray[np.int64]:
    """Give each answer in turn the free box that it fits best, as COCO does.

    Args:
        table: [K, M], overlaps; answers best first.
        ignored: [M], boxes that any number of answers may have.
        iou: Least overlap.

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


def _ranked(parts: list[tuple[NDArray[Any], ...]], num_true: int) -> ClassRanking:
    if not parts:
        return ClassRanking(
            np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, np.int64), num_true
        )
    scores, right, image = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")
    return ClassRanking(scores[order], right[order], image[order], num_true)


def _dataset(truth: Sequence[Truth], num_labels: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, true in enumerate(truth, start=1):
        for box, label, ignored in zip(*(a.tolist() for a in true), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label + 1,
                    "bbox": [box[0], box[1], width, height],
                    "area": width * height,
                    "iscrowd": int(ignored),
                }
            )
    return {
        "images": [{"id": image} for image in range(1, len(truth) + 1)],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(num_labels)],
        "annotations": annotations,
    }


def _answers(found: Sequence[Found]) -> Iterator[dict[str, Any]]:
    for image, answer in enumerate(found, start=1):
        for box, label, score in zip(*(a.tolist() for a in answer), strict=True):
            yield {
                "image_id": image,
                "category_id": label + 1,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": score,
            }


def _defined(value: float) -> float | None:
    return None if value < 0 else float(value)
