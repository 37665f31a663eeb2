"""The answer of a model that finds objects."""

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm_runtime.media.drawing import PALETTE, draw_boxes
from vfm_runtime.media.image import ImageSource, open_image
from vfm_runtime.tasks.confidence import UNLIKE_TRAINING, Doubt, Rules

THRESHOLD = 0.3
"""Least score of a box that is shown, unless another is asked for."""


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """What a model found in one image: K boxes, best first, most of them of low score."""

    boxes: NDArray[np.float32]
    """[K, 4], left, top, right, bottom in pixels of the original image; read-only."""

    scores: NDArray[np.float32]
    """[K], 0 to 1; read-only."""

    class_ids: NDArray[np.int64]
    """[K], index into `names`; read-only."""

    names: tuple[str, ...]
    """Every class."""

    rules: Rules = Rules()
    """Least score of each class, and how unlike the training an image may be."""

    distance: float | None = None
    """Of the image from those of the training; None of a model that does not measure it."""

    @classmethod
    def from_arrays(
        cls,
        boxes: ArrayLike,
        class_ids: ArrayLike,
        scores: ArrayLike,
        names: Sequence[str],
        *,
        rules: Rules = Rules(),
        distance: float | None = None,
    ) -> Self:
        """Build an answer from one image's rows.

        Args:
            boxes: [K, 4].
            class_ids: [K].
            scores: [K].
            names: Every class.
            rules: When the answer is sure.
            distance: Of the image from those of the training.

        Raises:
            ValueError: Their lengths differ, or a number is not finite.
        """
        corners, values = np.array(boxes, np.float32), np.array(scores, np.float32)
        ids = np.array(class_ids, np.int64)
        if corners.shape != (len(values), 4) or ids.shape != values.shape:
            raise ValueError(
                f"There are {len(values)} scores, boxes of shape {list(corners.shape)} and classes of shape "
                f"{list(ids.shape)}. Give one box [4], class and score each."
            )
        if not (np.isfinite(corners).all() and np.isfinite(values).all()):
            raise ValueError(
                "The model answered with NaN or infinite boxes or scores. Check the bundle with "
                "`vfm-runtime check`, and export it anew with 32-bit weights if it fails."
            )
        for part in (corners, values, ids):
            part.setflags(write=False)
        return cls(corners, values, ids, tuple(names), rules, distance)

    @property
    def reason(self) -> Doubt | None:
        """Why the answer is not to be relied on, `unlike_training`; None where it is."""
        return UNLIKE_TRAINING if self.rules.is_unlike(self.distance) else None

    @property
    def unsure(self) -> bool:
        """Whether there is a `reason` not to rely on the answer."""
        return self.reason is not None

    @property
    def labels(self) -> list[str]:
        """Name of the class of each box."""
        return [self.names[index] for index in self.class_ids.tolist()]

    def above(self, threshold: float | None = None) -> Self:
        """Return the boxes of at least this score.

        Args:
            threshold: 0 to 1; None for the one of each class in the bundle, 0.3 where it has none.

        Raises:
            ValueError: It lies outside that range.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}. Give a score, 0 to 1.")
        least = self.rules.least(self.class_ids, THRESHOLD) if threshold is None else threshold
        kept = self.scores >= np.float32(least)
        parts = self.boxes[kept], self.class_ids[kept], self.scores[kept], self.names
        return self.from_arrays(*parts, rules=self.rules, distance=self.distance)

    def to_dict(self, threshold: float | None = None) -> dict[str, Any]:
        """Return the boxes of at least this score as plain values that JSON can hold.

        Args:
            threshold: As for `above`.
        """
        shown = self.above(threshold)
        rows = zip(shown.boxes.tolist(), shown.labels, shown.scores.tolist(), strict=True)
        found = [{"box": box, "label": name, "score": score} for box, name, score in rows]
        answer: dict[str, Any] = {"boxes": found}
        if self.distance is not None:
            answer |= {"distance": self.distance, "reason": self.reason}
        return answer

    def to_coco(self, image_id: int, *, first_category: int = 1) -> list[dict[str, Any]]:
        """Return every box as an entry of a COCO results file.

        Args:
            image_id: Of the image in the annotations.
            first_category: Id of the first of `names`.
        """
        sides = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        return [
            {
                "image_id": image_id,
                "category_id": class_id + first_category,
                "bbox": box,
                "score": score,
            }
            for box, class_id, score in zip(
                sides.tolist(), self.class_ids.tolist(), self.scores.tolist(), strict=True
            )
        ]

    def to_supervision(self, threshold: float | None = None) -> Any:
        """Return the boxes of at least this score as `supervision.Detections`.

        Args:
            threshold: As for `above`.

        Raises:
            ImportError: The package supervision is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ImportError as error:
            raise ImportError("to_supervision needs a package: pip install supervision.") from error
        shown = self.above(threshold)
        return supervision.Detections(
            xyxy=shown.boxes,
            confidence=shown.scores,
            class_id=shown.class_ids,
            data={"class_name": np.array(shown.labels)},
        )

    def draw(self, image: ImageSource, threshold: float | None = None) -> NDArray[np.uint8]:
        """Draw the boxes of at least this score, uint8 [H, W, 3].

        Args:
            image: The image that was answered, as for `predict`.
            threshold: As for `above`.
        """
        shown = self.above(threshold)
        colours = [PALETTE[index % len(PALETTE)] for index in shown.class_ids.tolist()]
        captions = [
            f"{name} {score:.2f}" for name, score in zip(shown.labels, shown.scores, strict=True)
        ]
        # The best last, so that its caption lies on top.
        return draw_boxes(
            open_image(image), shown.boxes[::-1], captions=captions[::-1], colours=colours[::-1]
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        counts = Counter(self.above().labels)
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common(5)) or "nothing"
        least = f"{THRESHOLD} and more" if self.rules.thresholds is None else "their thresholds"
        return f"Detections({found}; scores of {least})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        pairs = ((getattr(self, k), getattr(other, k)) for k in ("boxes", "scores", "class_ids"))
        plain = ("names", "rules", "distance")
        alike = all(getattr(self, name) == getattr(other, name) for name in plain)
        return alike and all(np.array_equal(a, b) for a, b in pairs)

    # Equal by arrays of floats, so not a sensible key of a dict.
    __hash__ = None  # type: ignore[assignment]
