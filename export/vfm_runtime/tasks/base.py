"""Task types and predictions: what a model is asked, and what it answers, behind one interface for all tasks.

Generic code (predictor, bundle, command line, server) calls these and never asks which task it has before it. A task is
a `TaskType`, found by its name in the table of `tasks/registry.py`, and a `Prediction` that it makes.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.errors import ContractError, DataError, OptionError
from vfm_runtime.media.image import ImageSource, Pixels
from vfm_runtime.media.video import LIMITS, VideoLimits
from vfm_runtime.tasks.confidence import AbstainReason, ConfidenceRules
from vfm_runtime.tasks.groups import GroupChoice, GroupRules
from vfm_runtime.tasks.tiling import ScoredBoxes, Tiling

Arrays = dict[str, NDArray[Any]]
"""Inputs or outputs of a model, by name; the first dimension counts images."""

REFERENCE_PORTS = {"components": "float", "distances": "float"}
"""Outputs of a graph that measures how far images are from those of the training, beside those of its task."""

DRIFT_LABELS = "labels"
"""Name of the drift value that is the index of the best label; of one of several heads, with its name in front."""

_DTYPES = {"float": np.float32, "int64": np.int64}
_DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class PredictionView:
    """How a prediction is shown; each task heeds what applies to it."""

    top: int = 5
    """Number of best classes to list."""
    threshold: float | None = None
    """Least score of a box, or of a label where several may apply, 0 to 1; None for those of the bundle."""
    max_side: int | None = None
    """Longest side of a drawn picture in pixels; None for the picture's own."""


class Agreement(NamedTuple):
    """Two predictions for one image, compared."""

    difference: float
    """The largest difference of a score, a distance or a pixel of a heatmap; infinite where one is no number."""
    changed: bool
    """Whether the best label is another, a box has no partner, or other crops were judged."""
    expected: str
    """The first prediction in a word or two."""
    actual: str
    """The second prediction in a word or two."""


def find_largest_difference(*differences: float) -> float:
    """Return the largest of some differences, from 0 up; infinite where one is NaN, which would compare as small."""
    largest = float(np.max(differences))
    return float("inf") if np.isnan(largest) else largest


def compare_distances(expected: float | None, actual: float | None, *, approximate: bool) -> float:
    """Return how far two distances from the training images differ, as a fraction of the larger, or of 1.

    Args:
        expected: Distance at export; None of a model that does not measure it.
        actual: Distance here and now; None as `expected`.
        approximate: Whether one of them was computed in fewer bits: any finite difference is then none.
    """
    if expected is None or actual is None:
        return 0.0 if expected == actual else float("inf")
    fraction = abs(expected - actual) / max(1.0, abs(expected), abs(actual))
    return 0.0 if approximate and np.isfinite(fraction) else fraction


def read_distances(outputs: Arrays) -> list[float | None]:
    """Return the distance of each image from those of the training, [N]; None of a graph that does not measure it."""
    if "distances" in outputs:
        distances: list[float | None] = outputs["distances"].tolist()
        return distances
    return [None] * len(next(iter(outputs.values())))


class Prediction(ABC):
    """Prediction of a model for one image or video."""

    @property
    @abstractmethod
    def task(self) -> str:
        """Name of the task, as bundles and answers have it."""

    @property
    def reason(self) -> StrEnum | None:
        """Why the prediction is not to be relied on; None where it is."""
        return None

    @property
    def is_empty(self) -> bool:
        """Whether the source showed nothing that the model could be run on."""
        return False

    @abstractmethod
    def to_dict(self, view: PredictionView = PredictionView()) -> dict[str, Any]:
        """Return plain values that JSON can hold, among them the name of the `task`."""

    @abstractmethod
    def headline(self, view: PredictionView = PredictionView()) -> str:
        """Return the prediction in a line."""

    def lines(self, view: PredictionView = PredictionView()) -> list[str]:
        """Return the prediction for the shell, one line or several."""
        return [self.headline(view)]

    def draw(self, source: ImageSource, view: PredictionView = PredictionView()) -> Pixels | None:
        """Draw the prediction over its picture, opened anew, uint8 [H, W, 3]; None of a task that draws nothing."""
        return None

    @abstractmethod
    def compare(self, other: Self, *, approximate: bool = False) -> Agreement:
        """Compare with another prediction of this task for the same image.

        Reasons are not compared: limits are scores and distances of real images, which then lie on either side of them
        by the last digit. The scores and distances themselves are.

        Args:
            other: The prediction now, where this one is the expected one.
            approximate: Whether one of them was computed in fewer bits.
        """

    @abstractmethod
    def to_golden(self) -> dict[str, Any]:
        """Return what `golden.json` holds of the prediction, for `TaskType.read_golden`."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ConfidencePrediction(Prediction):
    """A prediction for one image with the rules that say when it is confident; equal where all its arrays are."""

    rules: ConfidenceRules = ConfidenceRules()
    """Least scores, and how unlike the training images an image may be."""
    distance: float | None = None
    """Distance of the image from those of the training; None of a model that does not measure it."""
    group: GroupChoice | None = None
    """Group that the image is of, and whose rules hold; None of a model without rules by group."""

    @property
    def reason(self) -> AbstainReason | None:
        """Why the prediction is not to be relied on, by the distance alone; None where it is."""
        is_unlike = self.rules.is_unlike(self.distance)
        return AbstainReason.UNLIKE_TRAINING if is_unlike else None

    @property
    def unsure(self) -> bool:
        """Whether there is a `reason` not to rely on the prediction."""
        return self.reason is not None

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        names = [field.name for field in fields(self)]
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    # Equal by arrays of floats, so not a sensible key of a dict.
    __hash__ = None  # type: ignore[assignment]


class Opened(NamedTuple):
    """An image or video that was opened for a model."""

    images: Sequence[ImageSource]
    """Images for `preprocess.onnx`: the image itself, or crops of it; there may be none."""
    context: Any = None
    """Values that the task needs beside the outputs to make its prediction; None where the outputs say all."""


class TaskType(ABC):
    """One task, bound to the labels and rules of a model: opens images for it, and makes predictions of its outputs.

    Attributes:
        labels: Label names, in the order of the scores.
        confidence: When a prediction is confident.
        tiling: How large images are cut into tiles, of a task that takes them; None to leave them whole.
        group_rules: Rules by group; None of a model without.
        group: Group whose rules hold here; None of a model without rules by group.
    """

    name: ClassVar[str]
    """Name by which bundles and answers have it."""
    package: ClassVar[str] = "vfm-runtime"
    """Distribution that brings it, this one by default, which a bundle names so that it can be said what to install."""
    summary: ClassVar[str]
    """What its models do, such as `finds objects`."""
    inputs: Mapping[str, str] = {"pixels": "uint8"}
    """Element type by name of what `model.onnx` takes; `preprocess.onnx` gives `pixels` and `geometry`."""
    outputs: Mapping[str, str]
    """Element type by name of what `model.onnx` gives."""
    takes_video: ClassVar[bool] = False
    """Whether videos are opened too."""
    uses_crops: ClassVar[bool] = False
    """Whether images are cut into crops, so that `open` can be told that they are crops already."""
    takes_tiles: ClassVar[bool] = False
    """Whether large images can be cut into tiles, whose predictions are joined."""
    uses_threshold: ClassVar[bool] = False
    """Whether `PredictionView.threshold` says anything."""
    multilabel: ClassVar[bool] = False
    """Whether several labels, or none, may apply to an image."""
    learns_boxes: ClassVar[bool] = False
    """Whether it can be taught classes by boxes, with `add_classes`."""
    draws: ClassVar[bool] = False
    """Whether `Prediction.draw` gives a picture."""
    group_keys: ClassVar[Sequence[str]] = ()
    """Names of the rules that may be others for a group of images; none of a task that has no rules by group."""
    group_rules: GroupRules | None = None
    group: GroupChoice | None = None
    answer_type: ClassVar[Any] = dict[str, Any]
    """Type of what `Prediction.to_dict` gives, by which the server documents it: a dataclass or a pydantic model."""

    def __init__(self, labels: Sequence[str], rules: Mapping[str, Any] | None = None) -> None:
        """Take the labels and the rules of a model, and check them.

        Args:
            labels: Label names, in the order of the scores.
            rules: Plain values of a contract; None for a model without rules.

        Raises:
            DataError: The rules do not hold, or do not go with the labels.
        """
        self.labels = tuple(labels)
        self.tiling: Tiling | None = None
        self.confidence = ConfidenceRules()
        self.has_rules = rules is not None
        if rules is not None:
            self.read_rules(rules)

    def read_rules(self, rules: Mapping[str, Any]) -> None:
        """Check the rules of a contract, plain values, and keep them: those of confidence, where a task has no others.

        Raises:
            DataError: They do not hold, or do not go with the labels.
        """
        self.confidence = ConfidenceRules.from_dict(rules)
        self.confidence.check_labels(self.labels)

    def rules_to_dict(self) -> dict[str, Any] | None:
        """Return the rules as plain values; None of a model without."""
        return self.confidence.to_dict() if self.has_rules else None

    def set_group_rules(self, rules: GroupRules) -> None:
        """Take rules by group; those of no group hold from then on, and `for_group` gives the others.

        Raises:
            ContractError: The task has no such rules, or they do not hold.
        """
        if not self.group_keys:
            raise ContractError.of("group_thresholds", rules.to_dict(), f"none for '{self.name}'")
        plain = copy.copy(self)
        self._by_group: dict[str | None, TaskType] = {}
        for group in (None, *rules.groups):
            choice, values = rules.choose(group)
            bound = self if group is None else copy.copy(plain)
            bound.group_rules, bound.group = rules, choice
            try:
                if set(values) - set(self.group_keys):
                    raise DataError(f"{sorted(set(values) - set(self.group_keys))} are no rules")
                bound.apply_group(values)
            except (ValueError, TypeError) as error:
                raise ContractError.of(
                    "group_thresholds",
                    values,
                    f"rules among {', '.join(self.group_keys)} ({error})",
                ) from error
            self._by_group[group] = bound

    def apply_group(self, rules: Mapping[str, Any]) -> None:  # noqa: B027 - most tasks have no such rules
        """Put the rules of a group, keys among `group_keys`, in the place of the general ones.

        Raises:
            ValueError: A rule does not hold.
        """

    def for_group(self, group: str | None) -> "TaskType":
        """Return the task with the rules of a group of images; None for the rules that hold where none is known.

        Raises:
            OptionError: There is no such group, or the model has no rules by group.
        """
        if self.group_rules is None:
            if group is not None:
                raise OptionError(
                    f"The group is {group!r}, but this model has no rules by group. Leave it out, or fit them: vfm "
                    "calibrate CHECKPOINT DATA --group-column NAME."
                )
            return self
        self.group_rules.choose(group)
        return self._by_group[group]

    def add_classes(
        self, labels: Sequence[str], threshold: float, add_boxes: Callable[[Arrays], ScoredBoxes]
    ) -> Self:
        """Return the task with more classes, which the model was taught.

        Args:
            labels: Names of the classes, other than those of the model.
            threshold: Least score of their boxes that are shown.
            add_boxes: Returns all boxes of one image from its row of the outputs; class indices of what was taught come
                after those of the model.

        Raises:
            OptionError: The task finds no boxes.
        """
        raise OptionError(f"A model that {self.summary} is taught no classes by boxes.")

    @property
    def heads(self) -> "Mapping[str, TaskType]":
        """What each head answers, by its name; the name of a single one is empty."""
        return {"": self}

    @property
    def has_reference(self) -> bool:
        """Whether the graph measures distances from the training images, as `REFERENCE_PORTS`."""
        return self.confidence.reference

    def open(
        self, source: ImageSource, *, cropped: bool = False, limits: VideoLimits = LIMITS
    ) -> Opened:
        """Open an image, or a video where the task takes them.

        Args:
            source: Image or video, as `Predictor.predict` takes it.
            cropped: Whether it is a crop already.
            limits: Largest size and length of a video.

        Raises:
            OptionError: The task makes no crops, and `cropped` was said.
        """
        if cropped:
            raise OptionError(
                f"cropped is for models that look at crops of faces; this one {self.summary} "
                f"({self.name!r}). Leave it out."
            )
        return Opened((source,))

    @abstractmethod
    def predictions(self, outputs: Arrays) -> Sequence[Prediction]:
        """Return the prediction of each row of outputs, with a DataError for NaN, or where there is not one a label."""

    def predict(self, opened: Opened, outputs: Arrays) -> Prediction:
        """Return the prediction for a source that `open` gave, from outputs with a row for each of its images."""
        (prediction,) = self.predictions(outputs)
        return prediction

    def read_golden(self, row: Mapping[str, Any]) -> Prediction:
        """Rebuild a prediction of the export from a row of `golden.json`, which `Prediction.to_golden` gave."""
        arrays = self.read_outputs(row)
        if "distances" in row:
            arrays["distances"] = np.array([row["distances"]], np.float32)
        (prediction,) = self.predictions(arrays)
        return prediction

    def read_outputs(self, row: Mapping[str, Any]) -> Arrays:
        """Return the outputs of one image that a row of `golden.json` holds by name."""
        return {name: np.array([row[name]], _DTYPES[dtype]) for name, dtype in self.outputs.items()}

    def drift_values(self, outputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the values of images that drift is told by: float [N], or of labels the best one's index, int64 [N].

        Components and distance of the embeddings, and for each head the score and the index of its best label, or box.
        """
        return score_drift_values(outputs)

    def check_shapes(self, shapes: Mapping[str, Sequence[Any]]) -> None:
        """Refuse a graph by the dimensions of its outputs, of which free ones are no numbers, with a DataError."""
        return

    def describe_rules(self) -> Iterator[tuple[str, str]]:
        """Yield the rules for people, each as its name and what it says."""
        if not self.has_rules:
            return
        rules = self.confidence
        parts = [f"temperature {rules.temperature:.4g}"]
        if rules.thresholds is not None:
            parts.append(
                f"scores from {min(rules.thresholds):.3f} to {max(rules.thresholds):.3f} up"
            )
        if rules.max_distance is not None:
            parts.append(f"distance up to {rules.max_distance:.3f}")
        yield "sure", ", ".join(parts)


def score_drift_values(outputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return drift values of `components`, `distances` and, of each head, `scores` or `head.scores`."""
    values: Arrays = {}
    if "components" in outputs:
        values |= {f"component_{k}": column for k, column in enumerate(outputs["components"].T)}
    if "distances" in outputs:
        values["distance"] = outputs["distances"]
    for name, scores in outputs.items():
        head, dot, port = name.rpartition(".")
        if port != "scores":
            continue
        best = scores.argmax(axis=1)
        rows = np.arange(len(scores))
        # Beyond three digits a score near 1 tells the processor, not the image.
        values[f"{head}{dot}score"] = np.round(scores[rows, best], _DIGITS)
        classes = outputs.get(f"{head}{dot}labels")
        values[f"{head}{dot}{DRIFT_LABELS}"] = best if classes is None else classes[rows, best]
    return values
