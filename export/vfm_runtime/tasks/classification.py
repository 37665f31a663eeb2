"""Classification: predictions of models that label images, one label an image or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.tasks.base import (
    Agreement,
    Arrays,
    ConfidencePrediction,
    PredictionView,
    TaskType,
    compare_distances,
    find_largest_difference,
    read_distances,
)
from vfm_runtime.tasks.confidence import (
    AbstainReason,
    ConfidenceRules,
    require_finite,
    soften_scores,
)
from vfm_runtime.tasks.groups import GroupChoice
from vfm_runtime.validation import is_number


@dataclass(frozen=True, eq=False, repr=False)
class LabelPrediction(ConfidencePrediction):
    """The labels of one image."""

    label: str
    """The class with the highest score, or that of the group's rule."""
    score: float
    """Probability of that class, 0 to 1."""
    scores: NDArray[np.float32]
    """Probability of every class, in the order of `labels`; read-only."""
    labels: tuple[str, ...]
    """Every class."""
    multilabel: bool = False
    """Whether several classes, or none, may apply, each with a probability of its own."""

    @classmethod
    def from_scores(
        cls,
        scores: ArrayLike,
        labels: Sequence[str],
        *,
        multilabel: bool = False,
        rules: ConfidenceRules = ConfidenceRules(),
        distance: float | None = None,
        cutoff: tuple[int, float] | None = None,
        group: GroupChoice | None = None,
    ) -> Self:
        """Build a prediction from one row of scores, a probability for each label.

        Args:
            scores: Probability of each label, float [C].
            labels: Name of each of C labels.
            multilabel: Whether several labels, or none, may apply.
            rules: When the prediction is sure.
            distance: Distance from the training images; None where it is not measured.
            cutoff: Index of a label, and the score from which on it is the label, whatever the other scores are, and
                below which it is not; None for the label of the highest score.
            group: Group whose rules these are.

        Raises:
            DataError: Scores and labels are not as many, or a score is not finite.
        """
        row = np.array(scores, dtype=np.float32)
        names = tuple(labels)
        if row.shape != (len(names),) or not names:
            raise DataError(
                f"The scores have shape {list(row.shape)} but there are {len(names)} labels. "
                "Give one score a label."
            )
        # A NaN would win every argmax: a confident prediction made of nothing.
        require_finite("scores", row)
        row.setflags(write=False)
        best = int(row.argmax())
        if cutoff is not None:
            index, least = cutoff
            others = np.where(np.arange(len(row)) == index, -1, row)
            best = index if row[index] >= least else int(others.argmax())
        parts = names[best], float(row[best]), row, names, multilabel
        return cls(*parts, rules=rules, distance=distance, group=group)

    @property
    def task(self) -> str:
        """`multilabel` where several classes may apply, else `classification`."""
        return MultilabelType.name if self.multilabel else ClassificationType.name

    @property
    def reason(self) -> AbstainReason | None:
        """Why the prediction is not to be relied on; None where it is.

        Where several classes may apply, thresholds say which ones do, and no score is too low.
        """
        if self.multilabel:
            return super().reason
        return self.rules.find_reason(self.labels.index(self.label), self.score, self.distance)

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """Return the `k` best classes with their scores, best first; all of them where there are fewer."""
        if k < 1:
            raise OptionError(f"k is {k}. Ask for at least 1 class.")
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.labels[index], float(self.scores[index])) for index in order]

    def applying(self, threshold: float | None = None) -> list[tuple[str, float]]:
        """Return the classes that apply with their scores, best first; there may be none.

        Args:
            threshold: Least score of a class that applies, 0 to 1; None for the one of each class in the bundle, 0.5
                where it has none.

        Raises:
            OptionError: The model gives one label an image, or the threshold is no probability.
        """
        if not self.multilabel:
            raise OptionError("This model gives one label an image: take `label`, or `top(k)`.")
        if threshold is not None and not 0 <= threshold <= 1:
            raise OptionError(f"threshold is {threshold}. Give a probability, 0 to 1.")
        order = np.argsort(-self.scores, kind="stable")
        fitted = self.rules.get_thresholds(order, 0.5)
        least = fitted if threshold is None else np.float64(threshold)
        applying = order[self.scores[order] >= least]
        return [(self.labels[index], float(self.scores[index])) for index in applying]

    def to_dict(self, view: PredictionView = PredictionView()) -> dict[str, Any]:
        """Return the prediction as plain values that JSON can hold: the best classes, and those that apply."""
        values: dict[str, Any] = {
            "task": self.task,
            "label": self.label,
            "score": self.score,
            "top": [{"label": label, "score": score} for label, score in self.top(view.top)],
        }
        if self.multilabel:
            values["labels"] = [label for label, _ in self.applying(view.threshold)]
        if self.distance is not None:
            values["distance"] = self.distance
        if self.group is not None:
            values |= self.group.to_dict()
        # A bundle without rules gives no `reason`, so that nobody reads its null as a confident prediction.
        return values if self.rules == ConfidenceRules() else {**values, "reason": self.reason}

    def headline(self, view: PredictionView = PredictionView()) -> str:
        """Return the best classes, or those that apply, with their scores."""
        pairs = self.applying(view.threshold) if self.multilabel else self.top(view.top)
        if not self.multilabel and pairs[0][0] != self.label:
            pairs = [(self.label, self.score), *(pair for pair in pairs if pair[0] != self.label)]
        best = ", ".join(f"{label} {score:.4f}" for label, score in pairs)
        best = best or f"none (nearest: {self.label} {self.score:.4f})"
        best = best if self.group is None else f"{best} ({self.group})"
        return best if self.reason is None else f"{best} (unsure: {self.reason})"

    def compare(self, other: Self, *, approximate: bool = False) -> Agreement:
        """Compare the scores of all classes, and the best label."""
        difference = find_largest_difference(
            float(np.abs(self.scores - other.scores).max()),
            compare_distances(self.distance, other.distance, approximate=approximate),
        )
        return Agreement(difference, self.label != other.label, self.label, other.label)

    def to_golden(self) -> dict[str, Any]:
        """Return the label and the scores."""
        row: dict[str, Any] = {"label": self.label, "scores": self.scores.tolist()}
        return row if self.distance is None else {**row, "distances": self.distance}

    def __repr__(self) -> str:
        if self.multilabel:
            return f"LabelPrediction({[label for label, _ in self.applying()]}, {len(self.labels)} classes)"
        why = "" if self.reason is None else f", {self.reason}"
        return f"LabelPrediction({self.label!r}, {self.score:.3f}{why}, {len(self.labels)} classes)"


@dataclass(frozen=True)
class LabelScore:
    """A class and its probability."""

    label: str
    score: float


@dataclass(frozen=True)
class LabelAnswer:
    """Plain values of a `LabelPrediction`; what is None here is left out of them where it says nothing."""

    task: Literal["classification", "multilabel"]
    label: str
    score: float
    top: list[LabelScore]
    labels: list[str] | None = None
    distance: float | None = None
    group: str | None = None
    group_rule: Literal["own", "general"] | None = None
    reason: AbstainReason | None = None


class ClassificationType(TaskType):
    """One label an image."""

    name = "classification"
    summary = "labels whole images"
    outputs: Mapping[str, str] = {"scores": "float"}
    answer_type = LabelAnswer
    group_keys: ClassVar[Sequence[str]] = ("cutoff", "temperature", "thresholds")
    cutoff: tuple[int, float] | None = None
    """Label of a group's rule, by its index, and the least score at which it is given."""
    further_temperature: float = 1.0
    """What the logits behind the scores of a group are divided by, beyond the model's temperature."""

    def apply_group(self, rules: Mapping[str, Any]) -> None:
        """Take `thresholds`, one a label, `cutoff`, {'label': name, 'score': 0 to 1}, and `temperature`."""
        if "temperature" in rules:
            temperature = rules["temperature"]
            if not is_number(temperature) or temperature <= 0:
                raise DataError("'temperature' needs a number above 0, that logits are divided by")
            # The scores of the graph are of logits over the model's own.
            self.further_temperature = temperature / self.confidence.temperature
        if "thresholds" in rules:
            self.confidence = replace(self.confidence, thresholds=rules["thresholds"])
            self.confidence.check_labels(self.labels)
        if (cutoff := rules.get("cutoff")) is None:
            return
        values = cutoff if isinstance(cutoff, Mapping) else {}
        label, score = values.get("label"), values.get("score", -1)
        if label not in self.labels or not is_number(score) or not 0 <= score <= 1:
            raise DataError("'cutoff' needs a 'label' of the model and a 'score' from 0 to 1")
        self.cutoff = self.labels.index(label), float(score)

    def predictions(self, outputs: Arrays) -> list[LabelPrediction]:
        """Return the prediction of each row of `scores` [N, C], with its distance where there are `distances` [N]."""
        options: dict[str, Any] = {
            "multilabel": self.multilabel,
            "rules": self.confidence,
            "cutoff": self.cutoff,
            "group": self.group,
        }
        scores = soften_scores(
            outputs["scores"], self.further_temperature, multilabel=self.multilabel
        )
        rows = zip(scores, read_distances(outputs), strict=True)
        return [
            LabelPrediction.from_scores(row, self.labels, distance=distance, **options)
            for row, distance in rows
        ]

    def read_golden(self, row: Mapping[str, Any]) -> LabelPrediction:
        """Rebuild a prediction; its label is the one of the export, whatever its scores say."""
        prediction = super().read_golden(row)
        assert isinstance(prediction, LabelPrediction)
        return replace(prediction, label=str(row["label"]))

    def check_shapes(self, shapes: Mapping[str, Sequence[Any]]) -> None:
        """Refuse a graph that does not give one score a label."""
        # A symbolic dimension is a name; the first prediction is then checked itself.
        num_scores = shapes["scores"][-1]
        if isinstance(num_scores, int) and num_scores != len(self.labels):
            raise DataError(
                f"answers with {num_scores} scores, the contract has {len(self.labels)} labels"
            )


class MultilabelType(ClassificationType):
    """Any number of labels an image, each with a probability of its own."""

    name = "multilabel"
    uses_threshold = True
    multilabel = True
    group_keys = ("temperature", "thresholds")
