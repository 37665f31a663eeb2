"""Taught boxes: classes that a detector learns from a few boxes, by the embeddings of boxes that it finds there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm_runtime.errors import DataError, OptionError, StateError, format_value
from vfm_runtime.media.image import ImageSource, Pixels
from vfm_runtime.search import find_nearest
from vfm_runtime.tasks.base import Arrays, Opened, TaskType
from vfm_runtime.tasks.detection import Detections, compute_iou
from vfm_runtime.tasks.embedding import EmbeddingSpec
from vfm_runtime.tasks.tiling import ScoredBoxes
from vfm_runtime.teaching.box_head import BoxHead, fit_box_head, scale_vectors
from vfm_runtime.teaching.classes import (
    Evidence,
    format_names,
    format_nearest,
    hash_image,
    name_image,
)
from vfm_runtime.teaching.coco import read_coco
from vfm_runtime.teaching.state import (
    Surroundings,
    TaughtExample,
    TaughtState,
    check_label,
    check_labels,
)
from vfm_runtime.teaching.taught import Taught

THRESHOLD = 0.5
"""Least score of boxes of taught classes that are shown, unless another is asked for."""

_SAME_IOU = 0.5
"""Least overlap of an example with the box of the detector whose embedding it takes."""
_OTHER_IOU = 0.3
"""Overlap with every example below which a box shows something else."""
_MOST_SURROUNDINGS = 100
"""Boxes of something else that are kept of an image, those of the highest scores."""
_LEAST_SCORE = 0.01
_MOST_BOXES = 500
_CANDIDATES, _MOST_FOUND = 300, 100
"""Pairs of box and class of one image that are looked at, and that are found at most."""


class BoxModel(Protocol):
    """Detector that can be taught: the embeddings of its boxes, and how it opens and answers for an image."""

    box_embedding: EmbeddingSpec | None
    task_type: TaskType

    def open_source(self, source: ImageSource) -> ImageSource:
        """Open an image whose values need a range."""

    def open_pixels(self, image: ImageSource) -> Pixels:
        """Open one image."""

    def compute_opened(self, opened: Any) -> Arrays:
        """Compute the outputs for the images of one source that was opened, which is no traffic."""


class MarkedImage(NamedTuple):
    """An image with all boxes of one class in it, and what the detector finds there. M examples, K boxes."""

    label: str
    sha256: str
    name: str
    boxes: NDArray[np.float32]
    """[M, 4], left, top, right, bottom in pixels."""
    corners: NDArray[np.float32]
    """Boxes that the detector finds, [K, 4], best first."""
    vectors: NDArray[np.float32]
    """Their embeddings, [K, D]."""
    pictures: Sequence[bytes] = ()
    """A small JPEG of each example, [M]; none where none are kept."""


@dataclass(frozen=True, eq=False)
class BoxExplanation:
    """The boxes of one image that are shown, and the examples nearest to those of taught classes. K boxes."""

    prediction: Detections
    evidence: tuple[tuple[Evidence, ...], ...]
    """Examples for each box, [K], the nearest first; none for a box of a trained class."""
    version: int
    """Version of the state that answered."""

    def to_dict(self) -> dict[str, Any]:
        """Return all but the pictures, ready for JSON."""
        rows = zip(self.prediction.to_dict()["boxes"], self.evidence, strict=True)
        boxes = [{**box, "nearest": [one.to_dict() for one in some]} for box, some in rows]
        return {"boxes": boxes, "state_version": self.version}

    def lines(self) -> list[str]:
        """Return each box and its examples for the shell."""
        boxes = [self.prediction.select([row]).headline() for row in range(len(self.evidence))]
        rows = zip(boxes, self.evidence, strict=True)
        return [box + format_nearest(some) for box, some in rows] or [self.prediction.headline()]


@dataclass(frozen=True, eq=False)
class _Fitted:
    state: TaughtState
    head: BoxHead


class TaughtBoxes(Taught):
    """Classes of boxes that one detector was taught, in a folder or in memory; the bundle itself never changes."""

    def __init__(
        self, model: BoxModel, folder: str | Path | None = None, *, keep_pictures: bool = False
    ) -> None:
        """Open the state.

        Args:
            model: Detector whose boxes have embeddings.
            folder: Folder of the state; None to keep it in memory.
            keep_pictures: Whether small pictures of the images are kept too; else vectors alone.

        Raises:
            OptionError: A taught class has the name of one of the model's own.
            DataError: The state of the folder is damaged, or of another model.
        """
        assert model.box_embedding is not None
        super().__init__(model.box_embedding.fingerprint, folder, keep_pictures=keep_pictures)
        self._model = model
        self._output = model.box_embedding.output
        self._fitted: _Fitted | None = None

    def teach(self, examples_by_label: Mapping[str, Sequence[Any]]) -> TaughtState:
        """Teach classes by boxes; all of them are learned, or none where an image cannot be opened.

        A class that was taught before gets more examples. Boxes that it has already are left out, and so are those at
        which the detector finds nothing, unless a class has no others.

        Args:
            examples_by_label: For each class COCO files, or pairs of an image, as `predict` takes it, and all boxes of
                the class in it, [M, 4], left, top, right and bottom in pixels of the original image.

        Raises:
            ImageError: An image cannot be opened.
            OptionError: A class has no boxes, no proper name or that of an old class, or there would be too much.
            DataError: A file or a box cannot be used, is an example of another class, or nothing is found at any.
            StateError: The state cannot be written; it stays as it was.
        """
        names = check_labels(list(examples_by_label))
        marked = []
        for name, examples in zip(names, examples_by_label.values(), strict=True):
            self.check_name(name)
            pairs = _list_pairs(name, examples)
            if not pairs:
                raise OptionError(
                    f"There are no boxes of {format_names([name])}. Give one or more of each class."
                )
            marked += [self._mark(name, image, boxes) for image, boxes in pairs]
        return self.add(marked)

    def check_name(self, label: str) -> str:
        """Return the name of a class to teach, without spaces around it.

        Raises:
            OptionError: The model has such a class, or the name cannot be one.
        """
        name = check_label(label)
        if name in self._model.task_type.labels:
            raise OptionError(
                f"'{name}' is a class that this model was trained on, and is found already. Give the taught class "
                "another name, or train the model with the new boxes."
            )
        return name

    def add(self, marked: Sequence[MarkedImage]) -> TaughtState:
        """Add boxes in images that the detector has answered for; errors are those of `teach`."""
        examples, vectors, pictures, surroundings = [], [], [], []
        for image in marked:
            overlaps = compute_iou(image.boxes, image.corners)
            for index, (box, row) in enumerate(zip(image.boxes, overlaps, strict=True)):
                if row.max(initial=0.0) < _SAME_IOU:
                    continue
                text = f"{image.sha256} {np.round(box, 1).tolist()}"
                sha256 = hashlib.sha256(text.encode()).hexdigest()
                examples.append(TaughtExample(image.label, sha256, image.name))
                vectors.append(image.vectors[int(row.argmax())])
                pictures.append(image.pictures[index] if image.pictures else b"")
            others = image.vectors[overlaps.max(axis=0, initial=0.0) < _OTHER_IOU]
            others = others[:_MOST_SURROUNDINGS]
            surroundings.append(Surroundings(image.label, image.sha256, others))
        labels = {example.label for example in examples}
        for image in marked:
            if image.label not in labels:
                raise DataError(
                    f"The detector finds nothing at any box of '{image.label}', such as {image.boxes[0].tolist()} in "
                    f"{image.name or 'an image'}, so that it cannot tell the class. Mark whole objects of a size like "
                    "those that it was trained on, or train it with the new class."
                )
        stacked = np.stack(vectors).astype(np.float32)
        return self.store.change(lambda state: state.add(examples, stacked, pictures, surroundings))

    def extend(self, task: TaskType) -> TaskType:
        """Return a task that also finds what was taught; the task itself where that is nothing.

        An object that is shown both as of a trained and of a taught class keeps the box of the higher score alone.
        """
        fitted = self._fit()
        return task if fitted is None else self._extend(task, fitted)

    def explain(
        self, task: TaskType, opened: Opened, outputs: Arrays, num_nearest: int = 3
    ) -> BoxExplanation:
        """Answer for an image that was opened by its outputs, with the examples nearest to boxes of taught classes.

        Raises:
            StateError: Nothing was taught.
        """
        fitted = self._fit()
        if fitted is None:
            raise StateError("No class was taught. Teach one, whose boxes can be told from others.")
        prediction: Any = self._extend(task, fitted).predict(opened, outputs)
        shown: Detections = prediction.above()
        corners, vectors = self.locate(opened.context, outputs)
        examples = fitted.state.examples
        evidence: list[tuple[Evidence, ...]] = []
        assert fitted.state.vectors is not None
        scaled = scale_vectors(fitted.state.vectors)
        for box, class_id in zip(shown.boxes, shown.class_ids, strict=True):
            if class_id < len(task.labels):
                evidence.append(())
                continue
            # A taught class has the detector's own boxes, but where tiles cut an object.
            row = int(compute_iou(box[None], corners)[0].argmax())
            similarities = scaled @ scale_vectors(vectors[row : row + 1])[0]
            some = [
                Evidence(examples[i], float(similarities[i]), fitted.state.pictures[i])
                for i in find_nearest(similarities, num_nearest)
            ]
            evidence.append(tuple(some))
        return BoxExplanation(shown, tuple(evidence), fitted.state.version)

    def _extend(self, task: TaskType, fitted: _Fitted) -> TaskType:
        first = len(task.labels)

        def add_boxes(row: Arrays) -> ScoredBoxes:
            # A box of score 0 is one that a better box covers, there to fill up the number.
            is_located = row["scores"] > 0
            corners, vectors = row["boxes"][is_located], row[self._output][is_located]
            taught = _select_boxes(corners, fitted.head.compute_scores(vectors))
            scores = np.concatenate([row["scores"], taught.scores])
            ranks = np.argsort(-scores, kind="stable")
            return ScoredBoxes(
                np.concatenate([row["boxes"], taught.boxes])[ranks],
                np.concatenate([row["labels"], first + taught.class_ids])[ranks],
                scores[ranks].astype(np.float32),
            )

        return task.add_classes(fitted.state.labels, THRESHOLD, add_boxes)

    def locate(
        self, context: Any, outputs: Arrays
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the boxes that were found in one image, [K, 4], best first, and their embeddings, [K, D].

        Args:
            context: Regions of the tiles of the image, as it was opened; None where it is whole.
            outputs: Outputs for it, or for its tiles.
        """
        corners, scores = outputs["boxes"], outputs["scores"]
        if context is not None:
            shift = [(r.left, r.top, r.left, r.top) for r in context]
            corners = corners + np.array(shift, np.float32)[:, None]
        vectors = outputs[self._output]
        order = np.argsort(-scores.reshape(-1), kind="stable")
        order = order[scores.reshape(-1)[order] > 0]
        return corners.reshape(-1, 4)[order], vectors.reshape(-1, vectors.shape[-1])[order]

    def crop_boxes(self, pixels: Pixels, corners: NDArray[np.float32]) -> list[bytes]:
        """Return a small JPEG of what each box [M, 4] of an image shows."""
        height, width = pixels.shape[:2]
        low = np.floor(corners[:, :2]).clip(0, [width - 1, height - 1]).astype(int)
        high = np.ceil(corners[:, 2:]).clip(low + 1, [width, height]).astype(int)
        return [
            self.shrink_picture(np.ascontiguousarray(pixels[top:bottom, left:right]))
            for (left, top), (right, bottom) in zip(low.tolist(), high.tolist(), strict=True)
        ]

    def _mark(self, label: str, image: Any, boxes: ArrayLike) -> MarkedImage:
        name, model = name_image(image), self._model
        corners = check_boxes(boxes, name or "an image")
        opened = model.task_type.open(model.open_source(image))
        located, vectors = self.locate(opened.context, model.compute_opened(opened))
        pictures = self.crop_boxes(model.open_pixels(image), corners) if self.keeps_pictures else ()
        return MarkedImage(label, hash_image(image), name, corners, located, vectors, pictures)

    def _fit(self) -> _Fitted | None:
        """Fit the head anew where the state has changed; None where nothing was taught."""
        state = self.store.read()
        if self._fitted is None or self._fitted.state is not state:
            if state.vectors is None:
                return None
            for label in state.labels:
                self.check_name(label)
            self._fitted = _Fitted(state, fit_box_head(state))
        return self._fitted


def check_boxes(boxes: ArrayLike, where: str) -> NDArray[np.float32]:
    """Return the boxes of one image as float32 [M, 4].

    Raises:
        DataError: They are no boxes, or one has no area.
    """
    try:
        corners = np.asarray(boxes, np.float32)
    except (TypeError, ValueError):
        corners = np.zeros(0, np.float32)
    is_shaped = corners.ndim == 2 and corners.shape[1] == 4 and 0 < len(corners) <= _MOST_BOXES
    if not is_shaped or not np.isfinite(corners).all():
        raise DataError(
            f"The boxes of {where} are {format_value(boxes)}. Give a list of 1 to {_MOST_BOXES} boxes, each left, top, "
            "right and bottom in pixels."
        )
    if (flat := (corners[:, 2:] <= corners[:, :2]).any(axis=1)).any():
        raise DataError(
            f"A box of {where} is {corners[flat][0].tolist()}, which has no area. Give left, top, right and bottom in "
            "pixels."
        )
    return corners


def _list_pairs(label: str, examples: Sequence[Any]) -> list[tuple[Any, Any]]:
    pairs: list[tuple[Any, Any]] = []
    for example in examples:
        if isinstance(example, str | Path):
            pairs += read_coco(Path(example), label)[label]
        elif isinstance(example, tuple | list) and len(example) == 2:
            pairs.append((example[0], example[1]))
        else:
            raise OptionError(
                f"An example of '{label}' is {format_value(example)}. A detector is taught by boxes: give a COCO file, "
                "or pairs of an image and the boxes of the class in it."
            )
    return pairs


def _select_boxes(corners: NDArray[np.float32], scores: NDArray[np.float32]) -> ScoredBoxes:
    """Return the best pairs of a box and a class that no better box of the class covers, as a dense head does.

    Args:
        corners: Left, top, right and bottom of each box, [K, 4].
        scores: Score of each box for each class, [K, C].
    """
    pairs = np.argsort(-scores, axis=None, kind="stable")[:_CANDIDATES]
    boxes, class_ids = np.divmod(pairs, scores.shape[1])
    best = scores[boxes, class_ids]
    count = int((best >= _LEAST_SCORE).sum())
    boxes, class_ids, best = boxes[:count], class_ids[:count], best[:count]
    covers = compute_iou(corners[boxes], corners[boxes]) > _SAME_IOU
    covers &= class_ids[:, None] == class_ids
    remaining: list[int] = []
    for index in range(count):
        if not covers[index, remaining].any():
            remaining.append(index)
    rows = np.array(remaining[:_MOST_FOUND], np.int64)
    return ScoredBoxes(corners[boxes[rows]], class_ids[rows], best[rows])
