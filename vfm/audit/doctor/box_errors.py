"""Box errors: objects without a box, boxes beside their object or of another class, by what a detector finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.detection import compute_iou

from vfm.audit.doctor.source import DoctorSource
from vfm.audit.leaks import find_leaks
from vfm.audit.source import AuditedModel, open_model, predict_images
from vfm.metrics.detection import IOU, DetectedBoxes, TrueBoxes, compute_overlaps
from vfm.tasks.calibration import list_some
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.detection.results import select_truth

MISSING, SHIFTED, CONFUSED = "missing", "shifted", "class"
PROBLEMS = {
    MISSING: "objects without a box",
    SHIFTED: "boxes beside their object",
    CONFUSED: "boxes of another class",
}
"""What each problem of a box means, in the plural."""
_APART = 0.1
"""Intersection over union below which a detection and a box are not of one object."""
_LIKELY = 0.5
"""Doubt from which an error is likely: on planted errors about two of three such suspects were right."""
_FITS = 0.7
"""Intersection over union from which a box fits its object."""


class BoxSuspect(NamedTuple):
    """A box that may be wrong, or an object that may have none."""

    position: int
    """Index of the image."""
    problem: str
    """One of PROBLEMS."""
    box: tuple[float, ...]
    """Corners of the stated box in pixels; of a missing one those that the detector finds."""
    suggested_box: tuple[float, ...]
    """Corners that the detector finds."""
    label: int
    """Class of the box; -1 of a missing one."""
    suggested_label: int
    """Class that the detector finds."""
    doubt: float
    """Score of what the detector finds, less what speaks for the box as it stands; above 0 and at most 1."""

    def describe(self, labels: Sequence[str]) -> str:
        """Return in words what is doubted."""
        looks = f"looks like {labels[self.suggested_label]}"
        if self.problem == MISSING:
            return f"no box, {looks}"
        return f"labelled {labels[self.label]}, {looks}" + " beside it" * (self.problem == SHIFTED)


@dataclass(frozen=True)
class BoxErrors:
    """What the boxes of a data set are worth, as a detector sees them."""

    suspects: list[BoxSuspect]
    """The most doubtful first."""
    num_judged: int
    """Stated boxes of classes that the detector knows."""
    notes: list[str]
    """What the reader must know."""

    @property
    def likely(self) -> list[BoxSuspect]:
        """Those that are more likely wrong than not, as far as the detector knows."""
        return [suspect for suspect in self.suspects if suspect.doubt >= _LIKELY]


def open_detector(
    path: Path, source: DoctorSource, *, device: str, trust: Sequence[str]
) -> AuditedModel:
    """Open a checkpoint or a bundle that finds objects of the classes of a data set.

    Raises:
        OptionError: The data have no boxes, or it does something else or knows none of their classes.
    """
    if not source.has_boxes:
        raise OptionError(
            f"--detector is {path}, but {source.path} has no boxes to compare with what it finds. Leave it out."
        )
    checkpoint = None if path.is_dir() else Checkpoint.open(path, trust=trust)
    model = open_model(path, checkpoint, device=device)
    if not model.kind.locates:
        raise OptionError(
            f"--detector is {path}, which {model.predictor.task_type.summary}. Give a checkpoint or a bundle that "
            "finds objects, or leave it out."
        )
    if not set(source.labels) & set(model.labels):
        raise OptionError(
            f"--detector is {path}, which finds {list_some(model.labels)}, but the boxes are of "
            f"{list_some(source.labels)}. Give a detector of these classes, or leave it out."
        )
    return model


def judge_boxes(
    model: AuditedModel, source: DoctorSource, read: NDArray[np.bool_], batch_size: int
) -> BoxErrors:
    """Compare the boxes of a data set with those that a detector finds in its images.

    Args:
        model: Detector; classes are those of the same name.
        source: Images with boxes. N images.
        read: Which of them can be read, bool [N].
        batch_size: Images that go through the detector at once.
    """
    unknown = sorted(set(source.labels) - set(model.labels))
    usable = [i for i, r in enumerate(source.records) if read[i] and r.objects is not None]
    records = [source.records[i] for i in usable]
    predicted = predict_images(model, records, batch_size=batch_size)
    answers: list[Any] = predicted.predictions
    index = {name: k for k, name in enumerate(source.labels)}
    columns = np.array([index.get(name, -1) for name in model.labels], np.int64)
    is_unknown = np.isin(source.labels, unknown)
    truth, detected = [], []
    for position, answer in zip(predicted.positions.tolist(), answers, strict=True):
        record = records[position]
        stated = select_truth(record, [record], range(len(source.labels)))
        truth.append(stated._replace(ignored=stated.ignored | is_unknown[stated.labels]))
        labels = columns[answer.class_ids]
        is_shared = labels >= 0
        detected.append(
            DetectedBoxes(answer.boxes[is_shared], labels[is_shared], answer.scores[is_shared])
        )
    notes = []
    if learned := len(find_leaks(model.checkpoint, records)["copies"]):
        notes.append(
            f"The detector has learned from {learned} of these {len(records)} images, whose boxes it may doubt less "
            "than it should. --data.fold 0 with --data.folds 2 in its training keeps half of the images from it."
        )
    if unknown:
        notes.append(
            f"The detector knows no {list_some(unknown)}: boxes of these classes it does not judge."
        )
    suspects = find_box_errors(truth, detected)
    positions = [usable[i] for i in predicted.positions.tolist()]
    return BoxErrors(
        [suspect._replace(position=positions[suspect.position]) for suspect in suspects],
        sum(int((~each.ignored).sum()) for each in truth),
        notes,
    )


def find_box_errors(
    truth: Sequence[TrueBoxes], detected: Sequence[DetectedBoxes]
) -> list[BoxSuspect]:
    """Compare boxes with those of a detector, which best has not learned from them.

    A detection near which there is no box doubts that all objects have one, by its score. One on a box of another class
    doubts that class: by its score less the best score of the stated class there. One of the same class whose IoU with
    the box is below 0.7 doubts the place: by its score less the best score of one that fits, times 1 - IoU / 0.7.
    The problems are those of ObjectLab (Tkachenko et al., 2023).

    Args:
        truth: Boxes of each image as they are stated.
        detected: Detections in each, of any score, with the same class indices.

    Returns:
        The most doubtful first; each box, and each object without one, once.
    """
    suspects = [
        suspect._replace(position=position)
        for position, each in enumerate(zip(truth, detected, strict=True))
        for pair in [_ImagePair(*each)]
        for suspect in (*pair.doubt_boxes(), *pair.find_missing())
    ]
    return sorted(suspects, key=lambda suspect: -suspect.doubt)


class _ImagePair:
    """The boxes of an image as stated, and as found."""

    def __init__(self, truth: TrueBoxes, detected: DetectedBoxes) -> None:
        self.truth, self.detected = truth, detected
        self.corners = detected.corners.reshape(-1, 4)
        overlaps = compute_overlaps(self.corners, truth.corners.reshape(-1, 4), truth.ignored).T
        self.is_alone = overlaps.max(axis=0, initial=0) < _APART
        self.iou = overlaps * ~truth.ignored[:, None]
        self.is_same = truth.labels[:, None] == detected.labels[None]
        # A detection speaks of the box that it overlaps most.
        self.is_near = (self.iou >= _APART) & (self.iou == self.iou.max(axis=0, initial=0))

    def doubt_boxes(self) -> Iterator[BoxSuspect]:
        """Yield the boxes whose place or class something speaks against."""
        scores = self.detected.scores
        for k in np.flatnonzero(self.is_near.any(axis=1)).tolist():
            iou, same, near = self.iou[k], self.is_same[k], self.is_near[k]
            shift = scores - (scores * (same & (iou >= _FITS))).max()
            shift = np.where(near & same & (iou < _FITS), shift * (1 - iou / _FITS), 0)
            other = scores - (scores * (same & (iou >= IOU))).max()
            other = np.where(near & ~same & (iou >= IOU), other, 0)
            problem, doubts = max(
                (SHIFTED, shift), (CONFUSED, other), key=lambda each: each[1].max()
            )
            index = int(doubts.argmax())
            if doubts[index] > 0:
                box, label = _list(self.truth.corners[k]), int(self.truth.labels[k])
                yield self._suspect(problem, index, box, label, float(doubts[index]))

    def find_missing(self) -> Iterator[BoxSuspect]:
        """Yield what is found where no box is, each object once."""
        alone, between = self.is_alone.copy(), compute_iou(self.corners, self.corners)
        for index in np.argsort(-self.detected.scores, kind="stable").tolist():
            if alone[index] and self.detected.scores[index] > 0:
                # Other detections of the same object, whatever their class.
                alone &= between[index] < _APART
                box, doubt = _list(self.corners[index]), float(self.detected.scores[index])
                yield self._suspect(MISSING, index, box, -1, doubt)

    def _suspect(
        self, problem: str, index: int, box: tuple[float, ...], label: int, doubt: float
    ) -> BoxSuspect:
        suggested_box = _list(self.corners[index])
        suggested_label = int(self.detected.labels[index])
        return BoxSuspect(-1, problem, box, suggested_box, label, suggested_label, doubt)


def _list(box: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in box)
