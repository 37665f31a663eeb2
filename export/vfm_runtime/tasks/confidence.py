"""Confidence and abstention: temperature, thresholds, and the reasons why a prediction is not to be relied on."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm_runtime.errors import DataError
from vfm_runtime.validation import StoredRules, is_number


class AbstainReason(StrEnum):
    """Why a prediction is not to be relied on, or why there is none."""

    LOW_SCORE = "low_score"
    """The score of the label is below the label's threshold."""
    UNLIKE_TRAINING = "unlike_training"
    """The image is too far from the training data for any score of the model to mean something."""
    NO_FACE = "no_face"
    """No frame shows a face."""
    FACE_TOO_SMALL = "face_too_small"
    """All faces are too small to be judged."""
    TOO_BLURRED = "too_blurred"
    """All faces are too blurred to be judged."""
    TOO_FEW_FRAMES = "too_few_frames"
    """Too small a fraction of the frames of a video can be judged."""
    FRAMES_DISAGREE = "frames_disagree"
    """The frames of a video say different things."""
    NEAR_THRESHOLD = "near_threshold"
    """The score lies between those of two labels."""


@dataclass(frozen=True, kw_only=True)
class ConfidenceRules(StoredRules):
    """Confidence: when a prediction is to be relied on; part of a bundle. Checked when made."""

    title: ClassVar[str] = "rules of confidence"

    temperature: float = 1.0
    """What the model's raw outputs are divided by before they become scores. The graph does it already: for the
    record only."""
    thresholds: tuple[float, ...] | None = None
    """Least score of each label, 0 to 1. A single label of a lower score is unsure; where several labels may apply,
    and of boxes, it is what applies and is shown unless another threshold is asked for. None where none was fitted."""
    max_distance: float | None = None
    """Largest distance from the training data of a prediction that is sure; None for no limit."""
    reference: bool = False
    """Whether the graph also gives `distances` [N] from the training data and the `components` [N, k] of its
    embeddings, by which drift is watched."""

    def __post_init__(self) -> None:
        if not is_number(self.temperature) or self.temperature <= 0:
            _refuse("temperature", self.temperature, "a number above 0")
        # Files hold lists, Python gives tuples: one form makes `==` meaningful.
        if isinstance(self.thresholds, list):
            object.__setattr__(self, "thresholds", tuple(self.thresholds))
        if self.thresholds is not None:
            _check_thresholds(self.thresholds)
        if not isinstance(self.reference, bool):
            _refuse("reference", self.reference, "true or false")
        if self.max_distance is None:
            return
        if not is_number(self.max_distance) or self.max_distance < 0:
            _refuse("max_distance", self.max_distance, "a number from 0 up or null")
        if not self.reference:
            # A limit on what the graph does not give would never be passed, without a word.
            _refuse("max_distance", self.max_distance, "null where 'reference' is false")

    def check_labels(self, labels: Sequence[str]) -> None:
        """Refuse thresholds that are not one a label, with a DataError."""
        count = len(labels) if self.thresholds is None else len(self.thresholds)
        if count != len(labels):
            _refuse("thresholds", f"{count} numbers", f"{len(labels)}, one for each label")

    def is_unlike(self, distance: float | None) -> bool:
        """Tell whether an image is too far from the training data; None where its distance is not measured.

        Raises:
            DataError: The distance is not finite.
        """
        if self.max_distance is None or distance is None:
            return False
        require_finite("distances", distance)
        return distance > self.max_distance

    def find_reason(
        self, label: int, score: float, distance: float | None = None
    ) -> AbstainReason | None:
        """Find why a prediction of one label, by its index and score, is unsure; None where it is sure."""
        # The distance first: far from the training data neither a high nor a low score means anything.
        if self.is_unlike(distance):
            return AbstainReason.UNLIKE_TRAINING
        is_low = self.thresholds is not None and score < self.thresholds[label]
        return AbstainReason.LOW_SCORE if is_low else None

    def get_thresholds(self, class_ids: NDArray[np.int64], default: float) -> NDArray[np.float64]:
        """Return the threshold of each box, or label, [K], by its class.

        Args:
            class_ids: int64 [K], index of the class among the model's.
            default: Threshold of every class where none were fitted.
        """
        if self.thresholds is None:
            return np.full(len(class_ids), default, np.float64)
        return np.array(self.thresholds, np.float64)[class_ids]

    def to_dict(self) -> dict[str, Any]:
        """Return the rules as plain values that JSON can hold."""
        values = super().to_dict()
        return values if self.thresholds is None else values | {"thresholds": list(self.thresholds)}


def soften_scores(
    scores: ArrayLike, temperature: float, *, multilabel: bool = False
) -> NDArray[np.float32]:
    """Return the probabilities, float32 [N, C], that logits over a temperature give, from those of plain logits.

    Args:
        scores: Probabilities, [N, C], of one label an image, or of each label by itself.
        temperature: What logits are divided by, as a calibration fitted it.
        multilabel: Whether each label has a probability of its own.
    """
    if temperature == 1.0:
        return np.asarray(scores, np.float32)
    values = np.asarray(scores, np.float64).clip(1e-30, 1.0)
    if multilabel:
        values = values.clip(max=1 - 2**-25)  # what float32 rounds to 1 is no further from it
        logits = np.log(values) - np.log1p(-values)
        divided = np.exp(-np.logaddexp(0.0, -logits / temperature))
    else:
        logs = np.log(values) / temperature
        powers = np.exp(logs - logs.max(axis=1, keepdims=True))
        divided = powers / powers.sum(axis=1, keepdims=True)
    return np.asarray(divided, np.float32)


def require_finite(what: str, *arrays: ArrayLike) -> None:
    """Refuse outputs of a model, named in the plural, that are NaN or infinite, with a DataError."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise DataError(
            f"The model answered with NaN or infinite {what}. Check the bundle with "
            "`vfm-runtime check`, and export it anew with 32-bit weights if it fails."
        )


def _check_thresholds(values: object) -> None:
    if not isinstance(values, tuple) or not values:
        _refuse("thresholds", values, "a list of at least one number from 0 to 1, or null")
    for value in values:
        if not is_number(value) or not 0 <= value <= 1:
            _refuse("thresholds", value, "numbers from 0 to 1")


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    raise DataError(f"The rules of confidence hold {value!r} as '{name}'; expected {expected}.")
