"""The answers that were wrong, the most confident first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vfm.data.dataset import Record


class Mistake(NamedTuple):
    """A wrong answer."""

    record: Record
    truth: str
    """The true class; for independent labels, the label in question with `not` where it does not apply."""
    answer: str
    score: float
    """Probability that the model gave to its answer."""


def find_mistakes(
    scores: NDArray[np.float32],
    target: NDArray[Any],
    records: Sequence[Record],
    labels: Sequence[str],
    threshold: float = 0.5,
) -> list[Mistake]:
    """Every wrong answer, the most confident first.

    Args:
        scores: [N, C].
        target: int [N]; or float [N, C], where each label of each image counts for itself.
        records: The images, N.
        labels: Names, C.
        threshold: Score from which an independent label is taken to apply.
    """
    if target.ndim == 1:
        answer = scores.argmax(axis=1)
        wrong = np.flatnonzero(answer != target)
        found = [
            Mistake(records[i], labels[target[i]], labels[answer[i]], float(scores[i, answer[i]]))
            for i in wrong.tolist()
        ]
    else:
        found = [
            _of_label(records[i], labels[k], bool(target[i, k]), float(scores[i, k]))
            for i, k in np.argwhere((scores >= threshold) != (target > 0.5)).tolist()
        ]
    return sorted(found, key=lambda mistake: (-mistake.score, mistake.record.name))


def _of_label(record: Record, label: str, applies: bool, score: float) -> Mistake:
    if applies:
        return Mistake(record, label, f"not {label}", 1 - score)
    return Mistake(record, f"not {label}", label, score)
