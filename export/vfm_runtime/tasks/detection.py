"""Detection: predictions of models that find objects, as boxes with classes and scores."""

import copy
import importlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm_runtime.errors import DataError, MissingPackageError, OptionError, format_value
from vfm_runtime.media.drawing import PALETTE, draw_boxes, shrink
from vfm_runtime.media.image import ImageSource, open_image
from vfm_runtime.media.video import LIMITS, VideoLimits
from vfm_runtime.tasks.base import (
    Agreement,
    Arrays,
    ConfidencePrediction,
    Opened,
    PredictionView,
    TaskType,
    compare_distances,
    find_largest_difference,
    read_distances,
)
from vfm_runtime.tasks.confidence import AbstainReason, ConfidenceRules, require_finite
from vfm_runtime.tasks.tiling import ScoredBoxes, merge_tiles
from vfm_runtime.validation import is_whole

THRESHOLD = 0.3
"""Least score of a box that is shown, unless another is asked for."""

BOX_EMBEDDINGS = "box_embeddings"
"""Output of a detector's graph with a vector for each of its boxes, [N, K, D], where it can be taught classes."""

MIN_SCORE = 0.05
"""Boxes of a lower score are not compared: they come and go with the last digit."""

MIN_IOU = 0.99
"""Least overlap of boxes that are the same."""

ROUGH_IOU = 0.9
"""The same where one of the predictions was computed in fewer bits."""

SAME_OBJECT_IOU = 0.5
"""Overlap above which boxes of a trained and of a taught class show one object."""


@dataclass(frozen=True, eq=False, repr=False)
class Detections(ConfidencePrediction):
    """Objects in one image: K boxes, best first, most of them of low score."""

    boxes: NDArray[np.float32]
    """[K, 4], left, top, right, bottom in pixels of the original image; read-only."""
    scores: NDArray[np.float32]
    """[K], 0 to 1; read-only."""
    class_ids: NDArray[np.int64]
    """[K], index into `names`; read-only."""
    names: tuple[str, ...]
    """Every class."""
    category_ids: tuple[int, ...] | None = None
    """Id of each class in the COCO file that the model was trained on; None for 1, 2, 3 and so on."""

    @classmethod
    def from_arrays(
        cls,
        boxes: ArrayLike,
        class_ids: ArrayLike,
        scores: ArrayLike,
        names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
        rules: ConfidenceRules = ConfidenceRules(),
        distance: float | None = None,
    ) -> Self:
        """Build a prediction from the boxes [K, 4], class indices [K] and scores [K] of one image.

        Raises:
            DataError: Their lengths differ, or a number is not finite.
        """
        corners, values = np.array(boxes, np.float32), np.array(scores, np.float32)
        ids = np.array(class_ids, np.int64)
        if corners.shape != (len(values), 4) or ids.shape != values.shape:
            raise DataError(
                f"There are {len(values)} scores, boxes of shape {list(corners.shape)} and classes of shape "
                f"{list(ids.shape)}. Give one box [4], class and score each."
            )
        require_finite("boxes or scores", corners, values)
        for part in (corners, values, ids):
            part.setflags(write=False)
        categories = None if category_ids is None else tuple(category_ids)
        return cls(corners, values, ids, tuple(names), categories, rules=rules, distance=distance)

    @property
    def task(self) -> str:
        """`detection`."""
        return DetectionType.name

    @property
    def labels(self) -> list[str]:
        """Name of the class of each box."""
        return [self.names[index] for index in self.class_ids.tolist()]

    def above(self, threshold: float | None = None) -> Self:
        """Return the boxes of at least this score.

        Args:
            threshold: Least score, 0 to 1; None for the one of each class in the bundle, 0.3 where it has none.

        Raises:
            OptionError: The threshold lies outside its range.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise OptionError(f"threshold is {threshold}. Give a score, 0 to 1.")
        least = (
            self.rules.get_thresholds(self.class_ids, THRESHOLD) if threshold is None else threshold
        )
        return self.select(self.scores >= np.float32(least))

    def select(self, rows: NDArray[np.bool_] | Sequence[int]) -> Self:
        """Return some of the boxes, by their indices or by a mask [K]."""
        parts = self.boxes[rows], self.class_ids[rows], self.scores[rows], self.names
        more = {"category_ids": self.category_ids, "rules": self.rules, "distance": self.distance}
        return self.from_arrays(*parts, **more)  # type: ignore[arg-type]

    def to_dict(self, view: PredictionView = PredictionView()) -> dict[str, Any]:
        """Return the boxes of at least the view's threshold as plain values that JSON can hold."""
        shown = self.above(view.threshold)
        rows = zip(shown.boxes.tolist(), shown.labels, shown.scores.tolist(), strict=True)
        boxes = [{"box": box, "label": name, "score": score} for box, name, score in rows]
        values: dict[str, Any] = {"task": self.task, "boxes": boxes}
        if self.distance is not None:
            values |= {"distance": self.distance, "reason": self.reason}
        return values

    def headline(self, view: PredictionView = PredictionView()) -> str:
        """Return the boxes of at least the view's threshold with their labels and scores."""
        shown = self.above(view.threshold)
        rows = zip(shown.labels, shown.scores, shown.boxes.tolist(), strict=True)
        listed = [f"{n} {s:.4f} [{', '.join(f'{v:.1f}' for v in box)}]" for n, s, box in rows]
        best = "; ".join(listed) or f"none (best score {self.scores.max(initial=0):.4f})"
        return best if self.reason is None else f"{best} (unsure: {self.reason})"

    def compare(self, other: Self, *, approximate: bool = False) -> Agreement:
        """Look for each box of either prediction in the other, by class, overlap and score."""
        min_iou = ROUGH_IOU if approximate else MIN_IOU
        sides = [_match_boxes(self, other, min_iou), _match_boxes(other, self, min_iou)]
        differences = np.concatenate(sides)
        num_lost = int(np.isinf(differences).sum())
        names = [f"{len(side)} boxes" for side in sides]
        if num_lost:
            names[1] += f", {num_lost} of either without a partner"
        distance = compare_distances(self.distance, other.distance, approximate=approximate)
        difference = find_largest_difference(0.0, distance, *differences[np.isfinite(differences)])
        return Agreement(difference, num_lost > 0, *names)

    def to_golden(self) -> dict[str, Any]:
        """Return boxes, class indices and scores."""
        row: dict[str, Any] = {
            "boxes": self.boxes.tolist(),
            "labels": self.class_ids.tolist(),
            "scores": self.scores.tolist(),
        }
        return row if self.distance is None else {**row, "distances": self.distance}

    def to_coco(self, image_id: int, *, first_category: int | None = None) -> list[dict[str, Any]]:
        """Return every box as an entry of a COCO results file.

        Args:
            image_id: Id of the image in the annotations.
            first_category: Id of the first of `names`, where they are counted from there; None for the ids of the file
                that the model was trained on, and 1 where it was none of COCO.
        """
        sides = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        ids = self.category_ids
        if first_category is not None or ids is None:
            first = 1 if first_category is None else first_category
            ids = tuple(range(first, first + len(self.names)))
        categories = [ids[index] for index in self.class_ids.tolist()]
        rows = zip(categories, sides.tolist(), self.scores.tolist(), strict=True)
        return [
            {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
            for category, box, score in rows
        ]

    def to_supervision(self, threshold: float | None = None) -> Any:
        """Return the boxes of at least this score, as `above` has them, as `supervision.Detections`.

        Raises:
            MissingPackageError: The package supervision is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ImportError as error:
            raise MissingPackageError(
                "to_supervision needs a package: pip install supervision."
            ) from error
        shown = self.above(threshold)
        return supervision.Detections(
            xyxy=shown.boxes,
            confidence=shown.scores,
            class_id=shown.class_ids,
            data={"class_name": np.array(shown.labels)},
        )

    def draw(
        self, source: ImageSource, view: PredictionView = PredictionView()
    ) -> NDArray[np.uint8]:
        """Draw the boxes of at least the view's threshold, uint8 [H, W, 3]."""
        shown = self.above(view.threshold)
        image, scale = shrink(open_image(source), view.max_side)
        colors = [PALETTE[index % len(PALETTE)] for index in shown.class_ids.tolist()]
        captions = [
            f"{name} {score:.2f}" for name, score in zip(shown.labels, shown.scores, strict=True)
        ]
        # The best last, so that its caption lies on top.
        return draw_boxes(
            image, shown.boxes[::-1] * scale, captions=captions[::-1], colors=colors[::-1]
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        counts = Counter(self.above().labels)
        listed = ", ".join(f"{count} {name}" for name, count in counts.most_common(5)) or "nothing"
        least = f"{THRESHOLD} and more" if self.rules.thresholds is None else "their thresholds"
        return f"Detections({listed}; scores of {least})"


def _match_boxes(first: Detections, second: Detections, min_iou: float) -> NDArray[np.float32]:
    """Return how far the score of each box of the first is from that of its partner, [K]; infinite without one."""
    rows = np.flatnonzero(first.scores >= MIN_SCORE)
    same_class = first.class_ids[rows][:, None] == second.class_ids[None]
    a, b = first.boxes[rows], second.boxes
    # Two boxes without area at one place are the same.
    near = (compute_iou(a, b) >= min_iou) | (np.abs(a[:, None] - b[None]).max(-1) < 1e-3)
    differences = np.abs(first.scores[rows][:, None] - second.scores[None])
    # The partner among several boxes at one position is the one whose score is nearest.
    best: NDArray[np.float32] = np.where(same_class & near, differences, np.inf).min(
        axis=1, initial=np.inf
    )
    return best


def compute_iou(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the intersection over union of every pair, float64 [K, M].

    Args:
        first: Boxes [K, 4]: left, top, right, bottom.
        second: Boxes [M, 4], as `first`.
    """
    a, b = first[:, None].astype(np.float64), second[None].astype(np.float64)
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(min=0)
    shared = sides.prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(-1) for boxes in (a, b)]
    union = areas[0] + areas[1] - shared
    result: NDArray[np.float64] = shared / union.clip(min=1e-9)
    return result


@dataclass(frozen=True)
class BoxAnswer:
    """One box: left, top, right, bottom in pixels of the original image."""

    box: list[float]
    label: str
    score: float


@dataclass(frozen=True)
class DetectionAnswer:
    """Plain values of `Detections`; without `distance` and `reason` where the model measures no distance.

    An object is not shown twice as of a trained and of a taught class: the higher score stays.
    """

    task: Literal["detection"]
    boxes: list[BoxAnswer]
    distance: float | None = None
    reason: AbstainReason | None = None


class DetectionType(TaskType):
    """Objects with their boxes, in pixels of the original image."""

    name = "detection"
    summary = "finds objects"
    inputs: Mapping[str, str] = {"pixels": "uint8", "geometry": "float"}
    outputs: Mapping[str, str] = {"boxes": "float", "labels": "int64", "scores": "float"}
    takes_tiles = True
    learns_boxes = True
    uses_threshold = True
    draws = True
    answer_type = DetectionAnswer
    category_ids: tuple[int, ...] | None = None
    """Id of each class in the COCO file of the training; None where these are 1, 2, 3 and so on, or there was none."""

    _add_boxes: Callable[[Arrays], ScoredBoxes] | None = None
    _num_trained = 0
    """Classes of the training, which come before those that were taught."""

    def add_classes(
        self, labels: Sequence[str], threshold: float, add_boxes: Callable[[Arrays], ScoredBoxes]
    ) -> Self:
        """Return the task with more classes, by the arguments of `TaskType.add_classes`.

        An object that is shown gets one box where one of two classes was taught (`choose_classes`).
        """
        task = copy.copy(self)
        task.labels = (*self.labels, *labels)
        before = self.confidence.thresholds or (THRESHOLD,) * len(self.labels)
        thresholds = (*before, *(threshold for _ in labels))
        task.confidence = replace(self.confidence, thresholds=thresholds)
        if self.category_ids is not None:
            first = max(self.category_ids) + 1
            task.category_ids = (*self.category_ids, *range(first, first + len(labels)))
        task._add_boxes, task._num_trained = add_boxes, len(self.labels)
        return task

    def read_rules(self, rules: Mapping[str, Any]) -> None:
        """Check and keep the rules of a contract: those of confidence, the ids of COCO's categories, or both.

        Raises:
            DataError: They do not hold, or do not go with the labels.
        """
        confidence = {name: value for name, value in rules.items() if name != "category_ids"}
        if "category_ids" in rules:
            ids = rules["category_ids"]
            is_list = isinstance(ids, list | tuple) and all(map(is_whole, ids))
            if not is_list or len(set(ids)) != len(self.labels) or len(ids) != len(self.labels):
                raise DataError(
                    f"category_ids is {format_value(ids)}; expected {len(self.labels)} different whole numbers, one a "
                    "label."
                )
            self.category_ids = tuple(ids)
        self.has_rules = bool(confidence) or not rules
        if self.has_rules:
            super().read_rules(confidence)

    def rules_to_dict(self) -> dict[str, Any] | None:
        """Return the rules as plain values; None of a model without."""
        rules = super().rules_to_dict()
        if self.category_ids is None:
            return rules
        return (rules or {}) | {"category_ids": list(self.category_ids)}

    def open(
        self, source: ImageSource, *, cropped: bool = False, limits: VideoLimits = LIMITS
    ) -> Opened:
        """Open an image; of a model with tiles, a large one in tiles, whose regions are the context.

        Raises:
            ImageError: It has more tiles than the model takes.
        """
        if self.tiling is None:
            return super().open(source, cropped=cropped, limits=limits)
        pixels = open_image(source)
        height, width = pixels.shape[:2]
        is_path = isinstance(source, str | os.PathLike)
        self.tiling.require_size(height, width, os.fspath(source) if is_path else "image")  # type: ignore[arg-type]
        if not self.tiling.cuts(height, width):
            return super().open(pixels, cropped=cropped, limits=limits)
        regions = self.tiling.place(height, width)
        tiles = [pixels[r.top : r.bottom, r.left : r.right] for r in regions]
        return Opened(tiles, regions)

    def predict(self, opened: Opened, outputs: Arrays) -> Detections:
        """Return the prediction for a source that `open` gave; of tiles, their boxes merged and the median distance."""
        parts = self.predictions(outputs)
        if opened.context is None:
            (prediction,) = parts
            return prediction
        tiles = [ScoredBoxes(part.boxes, part.class_ids, part.scores) for part in parts]
        boxes, class_ids, scores = self._choose_classes(merge_tiles(opened.context, tiles))
        distances = [part.distance for part in parts if part.distance is not None]
        return Detections.from_arrays(
            *(boxes, class_ids, scores, self.labels),
            category_ids=self.category_ids,
            rules=self.confidence,
            distance=float(np.median(distances)) if distances else None,
        )

    def predictions(self, outputs: Arrays) -> list[Detections]:
        """Return the boxes of each image: `boxes` [N, K, 4], `labels` and `scores` [N, K], maybe `distances` [N]."""
        predictions = []
        for index, distance in enumerate(read_distances(outputs)):
            row = {name: values[index] for name, values in outputs.items()}
            if self._add_boxes is None:
                boxes = ScoredBoxes(row["boxes"], row["labels"], row["scores"])
            else:
                boxes = self._choose_classes(self._add_boxes(row))
            one = Detections.from_arrays(
                *(*boxes, self.labels),
                category_ids=self.category_ids,
                rules=self.confidence,
                distance=distance,
            )
            predictions.append(one)
        return predictions

    def _choose_classes(self, candidates: ScoredBoxes) -> ScoredBoxes:
        if self._add_boxes is None:
            return candidates
        least = self.confidence.get_thresholds(candidates.class_ids, THRESHOLD)
        return choose_classes(candidates, candidates.scores >= np.float32(least), self._num_trained)


def choose_classes(
    candidates: ScoredBoxes, is_shown: NDArray[np.bool_], num_trained: int
) -> ScoredBoxes:
    """Leave one box to an object that is shown both as of a trained and of a taught class, or of two taught classes.

    Of boxes of two such classes that overlap by an IoU above a half, the one of the higher score stays; of equal
    scores that of the class of the lower index, which is the trained one. Boxes of one class, of two trained classes,
    and of scores below the thresholds are as they were.

    Args:
        candidates: K boxes of one image.
        is_shown: Whether the score of each reaches its threshold, [K].
        num_trained: Number of trained classes; those of higher index were taught.
    """
    boxes, class_ids, scores = candidates
    is_taught = class_ids >= num_trained
    remaining = np.ones(len(scores), bool)
    for index in np.lexsort((class_ids, -scores)).tolist():
        if not (remaining[index] and is_shown[index]):
            continue
        covered = compute_iou(boxes[index : index + 1], boxes)[0] > SAME_OBJECT_IOU
        covered &= is_shown & (class_ids != class_ids[index]) & (is_taught | is_taught[index])
        # A better box that overlaps with this one would have taken it away before: only worse ones are covered.
        remaining &= ~covered
    return ScoredBoxes(boxes[remaining], class_ids[remaining], scores[remaining])
