"""The answer: one type for every model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray


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

    @classmethod
    def from_scores(
        cls, scores: ArrayLike, labels: Sequence[str], *, multilabel: bool = False
    ) -> Self:
        """Build a prediction from one row of scores.

        Args:
            scores: One number a class.
            labels: The class names, in the order of the scores.
            multilabel: Whether several classes may apply.

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
        return cls(names[best], float(row[best]), row, names, multilabel)

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

    def applying(self, threshold: float = 0.5) -> list[tuple[str, float]]:
        """Return the classes that apply with their scores, best first; there may be none.

        Args:
            threshold: Least score of a class that applies, 0 to 1.

        Raises:
            ValueError: The model gives one label an image, or the threshold is no probability.
        """
        if not self.multilabel:
            raise ValueError("This model gives one label an image: take `label`, or `top(k)`.")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}. Give a probability, 0 to 1.")
        return [pair for pair in self.top(len(self.labels)) if pair[1] >= threshold]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """Return the answer as plain values that JSON can hold.

        Args:
            k: How many classes to list under `top`.
        """
        top = [{"label": label, "score": score} for label, score in self.top(k)]
        answer: dict[str, Any] = {"label": self.label, "score": self.score, "top": top}
        if self.multilabel:
            answer["labels"] = [label for label, _ in self.applying()]
        return answer

    def __repr__(self) -> str:
        if self.multilabel:
            return (
                f"Prediction({[label for label, _ in self.applying()]}, {len(self.labels)} classes)"
            )
        return f"Prediction({self.label!r}, {self.score:.3f}, {len(self.labels)} classes)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prediction):
            return NotImplemented
        alike = (self.labels, self.multilabel) == (other.labels, other.multilabel)
        return alike and np.array_equal(self.scores, other.scores)

    # Equal by an array of floats, so not a sensible key of a dict.
    __hash__ = None  # type: ignore[assignment]
