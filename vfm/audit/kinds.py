"""Audit kinds: for each task, how labelled images are opened and what metrics its predictions are judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.base import Prediction

from vfm.audit.comparison import Bools, CountedMetric, Floats, ImageMetric, RatioMetric
from vfm.data import ImageData
from vfm.data.auto import open_boxes, open_labels
from vfm.data.detection.tiles import group_tiles
from vfm.data.folder import FolderData
from vfm.data.idx import find_idx_files
from vfm.data.records import Record, list_labels
from vfm.data.table import TableData
from vfm.data.tables import read_table
from vfm.metrics.calibration import fit_score_temperature
from vfm.metrics.classification import average_f1
from vfm.metrics.detection import (
    DetectedBoxes,
    TrueBoxes,
    compute_ap50,
    match_detections,
    match_image,
)
from vfm.metrics.ranking import Ranking, average_over_classes, rank_classes
from vfm.spec import Spec
from vfm.tasks.detection.results import select_truth

Labels = Sequence[str]


class ScoredAnswers(NamedTuple):
    """Answers whose scores say how likely each is right: M of them for N images."""

    scores: Floats
    """[M], 0 to 1."""
    right: Bools
    """[M], whether each is right."""
    image: NDArray[np.int64]
    """[M], index of its image."""
    name: str
    """What they are, in the plural."""
    remedy: str = "Remedy: vfm calibrate, on other images than these."
    """What helps where the scores are off."""


@dataclass(eq=False)
class Outcomes:
    """What is known of each of N images once it was predicted."""

    metrics: list[ImageMetric]
    """All metrics, the headline first."""
    compared: list[ImageMetric]
    """Those by which groups are compared, the headline's stand-in first."""
    predicted: list[str]
    """What was predicted of each image, in a word or two."""
    truth: list[str] | None
    """What is true of each image, likewise; None without labels."""
    confidence: Floats | None = None
    """[N], score of what was predicted; None of a model that gives several answers an image."""
    right: Bools | None = None
    """[N], whether it is right; None without labels, or where there are several answers an image."""
    target: NDArray[Any] | None = None
    """True classes, int [N], or zeros and ones, [N, C], where several labels may apply; None of boxes."""
    positive: str | None = None
    """Label whose rates of selection are compared; None where there is none."""
    notes: list[str] = field(default_factory=list)
    unit: str = "images"
    """What N counts, in the plural: images, or videos."""
    scores: NDArray[np.float32] | None = None
    """Probabilities, [N, C], of a model that labels whole images; None of others."""
    asserted: Bools | None = None
    """[N, C], which labels are given where several may apply; None of other models."""
    scored: ScoredAnswers | None = None
    """Answers by which calibration is judged; None without labels, or where no answer was given."""

    def fit_temperature(self, member: Bools) -> float:
        """Return what the logits of some images, bool [N], would best be divided by: 1 is best.

        Scores are taken as they are: above 1 they are too sure, below it not sure enough.
        """
        assert self.scores is not None
        assert self.target is not None
        return fit_score_temperature(self.scores[member], self.target[member])


class AuditKind(ABC):
    """What an audit asks of a task."""

    gives_one_label: bool = False
    """Whether the model gives exactly one label an image, of scores that are probabilities."""
    locates: bool = False
    """Whether the model says where things are, so that a picture whose content moves has another truth."""

    @abstractmethod
    def open_data(self, path: Path, training: Spec, labels: Labels) -> ImageData:
        """Read labelled images of a folder or a table, in the splits that they state."""

    @abstractmethod
    def judge(
        self,
        records: Sequence[Record],
        predictions: Sequence[Prediction],
        columns: Sequence[int] | None,
        labels: Labels,
        positive: str | None,
    ) -> Outcomes:
        """Return the metrics of predictions.

        Args:
            records: Record of each of N images.
            predictions: What was predicted for each of these images.
            columns: For each label of the data its index among the model's; None without labels.
            labels: Label names of the model.
            positive: Label whose rates are compared; None for the usual one.
        """

    def select(self, records: Sequence[Record]) -> list[Record]:
        """Return the whole images that records are of."""
        return list(records)

    def has_labels(self, path: Path, training: Spec, labels: Labels) -> bool:
        """Whether a path holds labels, right or wrong."""
        return True

    def open_unlabeled(self, path: Path) -> ImageData:
        """Read the images of a path that holds no labels."""
        return FolderData(path) if path.is_dir() else TableData(path)


class LabelKind(AuditKind):
    """Models that label whole images."""

    def __init__(self, *, multilabel: bool) -> None:
        self.multilabel = multilabel
        self.gives_one_label = not multilabel

    def open_data(self, path: Path, training: Spec, labels: Labels) -> ImageData:
        """Read a folder or a table, by the columns of the training's where it has them."""
        return open_labels(
            path, training=training or None, labels=labels, multilabel=self.multilabel
        )

    def has_labels(self, path: Path, training: Spec, labels: Labels) -> bool:
        """Whether a folder has folders of classes, or a table a column of labels."""
        if path.is_dir():
            return find_idx_files(path) or any(each.is_dir() for each in path.iterdir())
        columns = read_table(path).columns
        column = training.get("init_args", {}).get("label_column", "label") if training else "label"
        wanted = {column, "label"} if isinstance(column, str) else set(column)
        return bool(wanted & set(columns)) or set(labels) <= set(columns)

    def judge(
        self,
        records: Sequence[Record],
        predictions: Sequence[Prediction],
        columns: Sequence[int] | None,
        labels: Labels,
        positive: str | None,
    ) -> Outcomes:
        """Accuracy and macro F1, rates of a label; or where several may apply mean average precision and recall."""
        scores = np.stack([p.scores for p in predictions])  # type: ignore[attr-defined]
        each = None
        if columns is not None:
            each = [[columns[k] for k in list_labels(r)] for r in records]
        if self.multilabel:
            every = np.arange(len(labels))
            thresholds = [p.rules.get_thresholds(every, 0.5) for p in predictions]  # type: ignore[attr-defined]
            return _judge_several(scores, each, labels, np.stack(thresholds))
        target = None if each is None else np.array([label for (label,) in each], np.int64)
        if positive is None and len(labels) == 2:
            positive = labels[1]
        index = {label: k for k, label in enumerate(labels)}
        # By the rules of a group another label than that of the highest score may be given.
        best = np.array([index[p.label] for p in predictions])  # type: ignore[attr-defined]
        return _judge_single(scores, best, target, labels, positive)


def _judge_single(
    scores: NDArray[np.float32],
    best: NDArray[np.int64],
    target: NDArray[np.int64] | None,
    labels: Labels,
    positive: str | None,
) -> Outcomes:
    number = len(scores)
    confidence = scores[np.arange(number), best].astype(np.float64)
    ones = np.ones(number)
    metrics: list[ImageMetric] = []
    compared: list[ImageMetric] = []
    right = None
    if target is not None:
        right = best == target
        accuracy = RatioMetric("accuracy", right.astype(float), ones)
        support = np.eye(len(labels))[target]
        answered = np.eye(len(labels))[best]

        def compute_macro_f1(counts: NDArray[np.int64]) -> Floats:
            weights = counts.astype(np.float64)
            hits = weights @ (support * answered)
            return average_f1(hits, weights @ support, weights @ answered)

        metrics += [accuracy, CountedMetric("macro_f1", compute_macro_f1, num_resamples=1000)]
        compared.append(accuracy)
    else:
        metrics.append(RatioMetric("mean_confidence", confidence, ones, None))
    if positive is not None:
        index = list(labels).index(positive)
        is_called = (best == index).astype(float)
        rates = [RatioMetric("selection_rate", is_called, ones, None)]
        if target is not None:
            is_true = (target == index).astype(float)
            rates.append(RatioMetric("true_positive_rate", is_called * is_true, is_true))
            rates.append(
                RatioMetric("false_positive_rate", is_called * (1 - is_true), 1 - is_true, False)
            )
            if 0 < is_true.sum() < number:
                ranking = Ranking(scores[:, index], is_true > 0)
                metrics.append(CountedMetric("auroc", ranking.auroc))
        metrics += rates
        compared += rates
    if not compared:
        compared = list(metrics)
    truth = None if target is None else [labels[k] for k in target.tolist()]
    predicted = [labels[k] for k in best.tolist()]
    outcomes = Outcomes(
        *(metrics, compared, predicted, truth, confidence, right, target, positive), scores=scores
    )
    if right is not None:
        outcomes.scored = ScoredAnswers(confidence, right, np.arange(number), "predicted labels")
    return outcomes


def _judge_several(
    scores: NDArray[np.float32], each: list[list[int]] | None, labels: Labels, thresholds: Floats
) -> Outcomes:
    ones = np.ones(len(scores))
    is_called = (scores >= thresholds).astype(float)
    predicted = [
        ", ".join(labels[k] for k in np.flatnonzero(row).tolist()) or "none" for row in is_called
    ]
    called = RatioMetric("labels_per_image", is_called.sum(1), ones, None)
    if each is None:
        return Outcomes([called], [called], predicted, None)
    target = np.zeros_like(is_called)
    for row, applying in zip(target, each, strict=True):
        row[applying] = 1
    hits = is_called * target
    exact = RatioMetric("exact_match", (is_called == target).all(1).astype(float), ones)
    recall = RatioMetric("recall", hits.sum(1), target.sum(1))
    precision = RatioMetric("precision", hits.sum(1), is_called.sum(1))
    occurring = [k for k in range(len(labels)) if target[:, k].any()]
    rankings = rank_classes(scores[:, occurring], target[:, occurring] > 0)
    mean_ap = CountedMetric("mAP", average_over_classes(Ranking.average_precision, rankings))
    truth = [", ".join(labels[k] for k in applying) or "none" for applying in each]
    metrics: list[ImageMetric] = [mean_ap, exact, recall, precision, called]
    return Outcomes(
        metrics,
        [exact, recall, precision],
        predicted,
        truth,
        target=target,
        scores=scores,
        asserted=is_called > 0,
        scored=ScoredAnswers(
            scores.astype(np.float64).ravel(),
            target.ravel() > 0,
            np.repeat(np.arange(len(scores)), len(labels)),
            "labels, each a yes or no for an image",
        ),
    )


class BoxKind(AuditKind):
    """Models that find objects."""

    locates = True

    def open_data(self, path: Path, training: Spec, labels: Labels) -> ImageData:
        """Read images with boxes in any layout, whole."""
        arguments = dict(training.get("init_args", {})) if training else {}
        whole = {k: v for k, v in arguments.items() if k not in ("tile", "tile_overlap")}
        return open_boxes(path, training={**training, "init_args": whole} if training else None)

    def select(self, records: Sequence[Record]) -> list[Record]:
        """Return the photos that tiles are of."""
        return [photo for photo, _ in group_tiles(records)]

    def judge(
        self,
        records: Sequence[Record],
        predictions: Sequence[Prediction],
        columns: Sequence[int] | None,
        labels: Labels,
        positive: str | None,
    ) -> Outcomes:
        """AP50, and at the thresholds of production recall, precision and false alarms an image."""
        parts: list[Any] = list(predictions)
        shown = [each.above() for each in parts]
        predicted = [f"{len(each.scores)} boxes" for each in shown]
        ones = np.ones(len(parts))
        num_shown = np.array([len(each.scores) for each in shown], np.float64)
        boxes = RatioMetric("boxes_per_image", num_shown, ones, None)
        if columns is None:
            return Outcomes([boxes], [boxes], predicted, None)
        truth: list[TrueBoxes] = [select_truth(record, [record], columns) for record in records]
        every, above = (
            match_detections(
                truth,
                [DetectedBoxes(each.boxes, each.class_ids, each.scores) for each in some],
                len(labels),
            )
            for some in (parts, shown)
        )
        hits, false = np.zeros(len(parts)), np.zeros(len(parts))
        for ranking in above:
            hits += np.bincount(ranking.image[ranking.right], minlength=len(parts))
            false += np.bincount(ranking.image[~ranking.right], minlength=len(parts))
        num_true = np.array([float((~each.ignored).sum()) for each in truth])
        recall = RatioMetric("recall", hits, num_true)
        precision = RatioMetric("precision", hits, hits + false)
        alarms = RatioMetric("false_alarms_per_image", false, ones, False)
        ap50 = CountedMetric("AP50", lambda counts: compute_ap50(every, truth, counts))
        outcomes = Outcomes(
            [ap50, recall, precision, alarms, boxes], [recall, alarms, ap50], predicted, None
        )
        outcomes.truth = [f"{int(number)} objects" for number in num_true]
        outcomes.scored = _list_scored_boxes(truth, shown)
        return outcomes


def _list_scored_boxes(truth: Sequence[TrueBoxes], shown: Sequence[Any]) -> ScoredAnswers | None:
    """Return the boxes that are shown of each image; None where there are none."""
    scores, right, image = [], [], []
    for index, (true, each) in enumerate(zip(truth, shown, strict=True)):
        matched = match_image(true, DetectedBoxes(each.boxes, each.class_ids, each.scores))
        counted = matched >= -1
        scores.append(each.scores[counted].astype(np.float64))
        right.append(matched[counted] >= 0)
        image.append(np.full(counted.sum(), index))
    if not sum(map(len, scores)):
        return None
    return ScoredAnswers(
        np.concatenate(scores),
        np.concatenate(right),
        np.concatenate(image),
        "boxes that are shown; right is one of the class and an overlap (IoU) of 0.5",
        "The score of a box is to rank it; what is shown is decided by the thresholds of vfm calibrate.",
    )


KINDS: dict[str, AuditKind] = {
    "classification": LabelKind(multilabel=False),
    "multilabel": LabelKind(multilabel=True),
    "detection": BoxKind(),
}
"""How each task is audited, by the name that bundles have for it."""
