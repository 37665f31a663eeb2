"""Mistakes: predictions that were wrong, the most confident first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vfm.data.records import Record


class Mistake(NamedTuple):
    """A wrong prediction."""

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
    """Return every wrong prediction, the most confident first.

    The scores are [N, C]; the target is int [N], or float [N, C], where each label of each image counts for itself.
    """
    if target.ndim == 1:
        answer = scores.argmax(axis=1)
        mistakes = [
            Mistake(records[i], labels[target[i]], labels[answer[i]], float(scores[i, answer[i]]))
            for i in np.flatnonzero(answer != target).tolist()
        ]
    else:
        applies = target > 0.5
        mistakes = []
        for i, k in np.argwhere((scores >= threshold) != applies).tolist():
            names, score = (f"not {labels[k]}", labels[k]), float(scores[i, k])
            if applies[i, k]:
                names, score = names[::-1], 1 - score
            mistakes.append(Mistake(records[i], *names, score))
    return sorted(mistakes, key=lambda mistake: (-mistake.score, mistake.record.name))
