"""Collect a whole split's boxes over batches and ranks, and write the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.data.dataset import Record
from vfm.data.detection.tiles import is_centered_in
from vfm.metrics.detection import (
    Found,
    Truth,
    ap50_interval,
    coco_metrics,
    confusion,
    rankings,
)
from vfm.tasks.classification.results import RESULTS_FILE
from vfm.tasks.detection.page import write_box_page


class BoxAnswers(NamedTuple):
    """What a model found in a split, in the order of the split, each image once."""

    found: list[Found]
    """Of each image, in pixels of the original."""
    position: NDArray[np.int64]
    """[N], place of each image in its split."""
    loss: float
    """Sum over all objects."""

    def compared(
        self, records: Sequence[Record], numbers: Sequence[int]
    ) -> tuple[list[Truth], list[Found]]:
        """The true boxes and the answers of each image.

        Args:
            records: Of the split.
            numbers: For each class of the data its place among the model's.
        """
        seen = [records[i] for i in self.position]
        return [truth_of(record, numbers) for record in seen], [
            answer_of(record, found) for record, found in zip(seen, self.found, strict=True)
        ]


class BoxCollector:
    """Answers of a split, gathered over ranks."""

    def __init__(self) -> None:
        self._images: dict[int, Found] = {}
        self._loss = 0.0

    def add(self, answers: Mapping[str, Tensor], index: Tensor, loss: Tensor) -> None:
        """Keep a batch.

        Args:
            answers: `boxes` [N, K, 4], `labels` and `scores` [N, K], as a head decodes them.
            index: int [N], position of each image in its split.
            loss: Sum over the objects of the batch.
        """
        self._loss += float(loss)
        boxes, labels, scores = (
            answers[name].detach().cpu().numpy() for name in ("boxes", "labels", "scores")
        )
        for row, position in enumerate(index.tolist()):
            self._images[position] = Found(boxes[row], labels[row], scores[row])

    def gather(self) -> BoxAnswers:
        """The answers of all ranks; then starts anew."""
        images, loss = self._images, self._loss
        self._images, self._loss = {}, 0.0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, (images, loss))
            loss = sum(part for _, part in ranks)
            images = {position: found for part, _ in ranks for position, found in part.items()}
        order = sorted(images)
        return BoxAnswers([images[i] for i in order], np.array(order, np.int64), loss)


def truth_of(record: Record, numbers: Sequence[int]) -> Truth:
    """The true boxes of an image, in the model's classes; a tile ignores those that a neighbour answers for."""
    assert record.objects is not None
    assert isinstance(record.label, tuple)
    labels = np.array([numbers[label] for label in record.label], np.int64)
    tile, ignored = record.objects.tile, record.objects.ignored
    return Truth(record.objects.corners, labels, ignored if tile is None else ignored | ~tile.own)


def answer_of(record: Record, found: Found) -> Found:
    """What was found in an image; of a tile, what it answers for."""
    tile = record.objects.tile if record.objects else None
    if tile is None:
        return found
    kept = is_centered_in(tile.core, found.corners)
    return Found(found.corners[kept], found.labels[kept], found.scores[kept])


def figures_of(truth: Sequence[Truth], found: Sequence[Found], num_labels: int) -> dict[str, float]:
    """The few figures that every validation logs; 0 where there is nothing to find."""
    stats, _ = coco_metrics(truth, found, num_labels)
    return {name: stats[name] or 0.0 for name in ("AP", "AP50")}


def write_box_results(
    folder: Path,
    split: str,
    answers: BoxAnswers,
    records: Sequence[Record],
    labels: Sequence[str],
    numbers: Sequence[int],
    more: Mapping[str, Any],
) -> Path:
    """Add a split's results to `results.json`, and write its page and pictures beside it.

    Args:
        folder: Where the checkpoint lies.
        split: `val` or `test`; results of the other stay.
        answers: Of the whole split.
        records: Of the split.
        labels: Names of the model's classes.
        numbers: For each class of the data its place among the model's.
        more: What goes into the JSON besides the figures.

    Returns:
        The path of `results.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth, found = answers.compared(records, numbers)
    results = box_results(truth, found, labels) | dict(more)
    path = folder / RESULTS_FILE
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(kept | {split: results}, indent=2) + "\n", encoding="utf-8")
    seen = [records[i] for i in answers.position]
    write_box_page(folder, split, results, seen, truth, found, labels)
    return path


def box_results(
    truth: Sequence[Truth], found: Sequence[Found], labels: Sequence[str]
) -> dict[str, Any]:
    """Every figure of a split, ready for JSON.

    Args:
        truth: Of each image.
        found: Of the same images.
        labels: Names of the classes.
    """
    stats, per_class = coco_metrics(truth, found, len(labels))
    classes = rankings(truth, found, len(labels))
    best = [ranking.best_f1() for ranking in classes]
    thresholds = [threshold for threshold, _ in best]
    rows = [
        {
            "label": label,
            "num_boxes": ranking.num_true,
            "AP": ap,
            "best_threshold": threshold,
            "best_f1": f1,
        }
        for label, ranking, ap, (threshold, f1) in zip(
            labels, classes, per_class, best, strict=True
        )
    ]
    interval = ap50_interval(classes, truth)
    return {
        "num_samples": len(truth),
        "num_boxes": sum(ranking.num_true for ranking in classes),
        **{name: value for name, value in stats.items() if name != "AP50"},
        "AP50": interval | {"value": stats["AP50"]},
        "per_class": rows,
        "confusion_matrix": confusion(truth, found, thresholds).tolist(),
        "labels": list(labels),
        "curves": {label: ranking.curve() for label, ranking in zip(labels, classes, strict=True)},
    }
