"""The answer: one type for every model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm_runtime.tasks.confidence import UNLIKE_TRAINING, Doubt, Rules


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a model says about one image."""

    label: str
    """The class with the highest score."""

    score: float
    """Probability of that class, 0 to 1."""

    scores: NDArray[np.float32]
    """Probability of every class, in the order of `labels`; read-only."""

    labels: tuple[str, ...]
    """Every class."""

    multilabel: bool = False
    """Whether several classes, or none, may apply, each with a probability of its own."""

    rules: Rules = Rules()
    """When the answer is sure."""

    distance: float | None = None
    """From the images of the training; None of a model that does not measure it."""

    @classmethod
    def from_scores(
        cls,
        scores: ArrayLike,
        labels: Sequence[str],
        *,
        multilabel: bool = False,
        rules: Rules = Rules(),
        distance: float | None = None,
    ) -> Self:
        """Build a prediction from one row of scores.

        Args:
            scores: One number a class.
            labels: The class names, in the order of the scores.
            multilabel: Whether several classes may apply.
            rules: When the answer is sure.
            distance: From the images of the training.

        Raises:
            ValueError: Their lengths differ, or a score is not finite.
        """
        row = np.array(scores, dtype=np.float32)
        names = tuple(labels)
        if row.shape != (len(names),) or not names:
            raise ValueError(
                f"The scores have shape {list(row.shape)} but there are {len(names)} labels. "
                "Give one score a label."
            )
        # A NaN would win every argmax: a confident answer made of nothing.
        if not np.isfinite(row).all():
            raise ValueError(
                "The model answered with NaN or infinite scores. Check the bundle with "
                "`vfm-runtime check`, and export it anew with 32-bit weights if it fails."
            )
        row.setflags(write=False)
        best = int(row.argmax())
        return cls(names[best], float(row[best]), row, names, multilabel, rules, distance)

    @property
    def reason(self) -> Doubt | None:
        """Why the answer is not to be relied on; None where it is.

        Where several classes may apply, thresholds say which ones do, and no score is too low.
        """
        if self.multilabel:
            return UNLIKE_TRAINING if self.rules.is_unlike(self.distance) else None
        return self.rules.reason(int(self.scores.argmax()), self.score, self.distance)

    @property
    def unsure(self) -> bool:
        """Whether there is a `reason` not to rely on the answer."""
        return self.reason is not None

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """Return the best classes with their scores, best first.

        Args:
            k: How many; all of them where there are fewer.

        Raises:
            ValueError: `k` is below 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}. Ask for at least 1 class.")
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.labels[index], float(self.scores[index])) for index in order]

    def applying(self, threshold: float | None = None) -> list[tuple[str, float]]:
        """Return the classes that apply with their scores, best first; there may be none.

        Args:
            threshold: Least score of a class that applies, 0 to 1; None for the one of each class in the bundle, 0.5
                where it has none.

        Raises:
            ValueError: The model gives one label an image, or the threshold is no probability.
        """
        if not self.multilabel:
            raise ValueError("This model gives one label an image: take `label`, or `top(k)`.")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}. Give a probability, 0 to 1.")
        order = np.argsort(-self.scores, kind="stable")
        least = self.rules.least(order, 0.5) if threshold is None else np.float64(threshold)
        kept = order[self.scores[order] >= least]
        return [(self.labels[index], float(self.scores[index])) for index in kept]

    def to_dict(self, k: int = 5, threshold: float | None = None) -> dict[str, Any]:
        """Return the answer as plain values that JSON can hold.

        Args:
            k: How many classes to list under `top`.
            threshold: Of `labels`, where several classes may apply, as for `applying`.
        """
        top = [{"label": label, "score": score} for label, score in self.top(k)]
        answer: dict[str, Any] = {"label": self.label, "score": self.score, "top": top}
        if self.multilabel:
            answer["labels"] = [label for label, _ in self.applying(threshold)]
        if self.distance is not None:
            answer["distance"] = self.distance
        # Only where the bundle can be unsure; its absence is no promise.
        return answer if self.rules == Rules() else {**answer, "reason": self.reason}

    def __repr__(self) -> str:
        if self.multilabel:
            return (
                f"Prediction({[label for label, _ in self.applying()]}, {len(self.labels)} classes)"
            )
        why = "" if self.reason is None else f", {self.reason}"
        return f"Prediction({self.label!r}, {self.score:.3f}{why}, {len(self.labels)} classes)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prediction):
            return NotImplemented
        names = ("labels", "multilabel", "rules", "distance")
        alike = all(getattr(self, name) == getattr(other, name) for name in names)
        return alike and np.array_equal(self.scores, other.scores)

    # Equal by an array of floats, so not a sensible key of a dict.
    __hash__ = None  # type: ignore[assignment]
