"""Metadata probe: logistic regression on plain values tells labels apart, cross-validated by groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from vfm.metrics.intervals import compute_interval
from vfm.metrics.ranking import Ranking

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Value = float | str | None
"""A number, a category, or None where a file has no such thing."""

SHORTCUT_LIMIT = 0.6
"""Area under the ROC curve above which values that are not content give labels away."""
LEAST = 5
"""Groups that each side must have; with fewer, nothing can be said."""

_FOLDS = 5
_UNKNOWN = -1e3  # below every score: a class that a fold's model was not fitted on
_NUM_BINS = 8
_MOST_COMMON = 12
# A value of a smaller fraction of the files is no category of its own.
_COMMON = 0.02
_RESAMPLES = 500


class Separation(NamedTuple):
    """How well two sides are told apart, with a 95 % interval over groups."""

    auc: float
    """Area under the ROC curve of the scores that files got from models that did not see their groups."""
    low: float
    high: float

    @property
    def level(self) -> str:
        """`red` above the limit, `unclear` above it but with 0.5 in the interval, `clear` below."""
        if self.auc <= SHORTCUT_LIMIT:
            return "clear"
        return "red" if self.low > 0.5 else "unclear"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"value": self.auc, "low": self.low, "high": self.high, "level": self.level}


def measure_separation(
    table: Mapping[str, Sequence[Value]], positive: BoolArray, groups: IntArray, *, seed: int = 0
) -> Separation | None:
    """Tell the positive files from the others by their values alone.

    A group is never on both sides of a fold, and the interval draws whole groups. Numbers enter as they are, as
    the eighth of the files that they lie in, and, if many files share one, as a category: a fixed size in the middle
    of varying ones is found too.

    Args:
        table: For each feature a value of each file.
        positive: [N], the side of each file.
        groups: [N], number of the group of each file: its video and all that is tied to it.
        seed: Seed of folds and intervals.

    Returns:
        None where a side has fewer than five groups.
    """
    sides = [len(np.unique(groups[positive == side])) for side in (False, True)]
    if min(sides) < LEAST:
        return None
    scores = score_held_out(table, positive, groups, seed)
    numbers = np.unique(groups, return_inverse=True)[1]
    ranking = Ranking(scores, positive)
    value = float(ranking.auroc(np.ones((1, len(scores)), dtype=np.int64))[0])

    def compute_auc(counts: IntArray) -> FloatArray:
        # A draw that lost a side says nothing: it counts as the data itself.
        return np.nan_to_num(ranking.auroc(counts[:, numbers]), nan=value)

    interval = compute_interval(
        compute_auc, np.ones(numbers.max() + 1, dtype=np.int64), num_resamples=_RESAMPLES, seed=seed
    )
    return Separation(value, interval.low, interval.high)


def score_held_out(
    table: Mapping[str, Sequence[Value]],
    target: npt.NDArray[np.int64] | BoolArray,
    groups: IntArray,
    seed: int = 0,
) -> FloatArray:
    """Score files by models of their values alone, fitted on files of other groups.

    Args:
        table: For each feature a value of each file.
        target: Class of each file, int [N] from 0 without a gap, or bool [N].
        groups: [N], number of the group of each file.
        seed: Seed of the folds.

    Returns:
        The score of each class, [N, C]; of two classes that of the second alone, [N]. Where one group holds a whole
        class, files that were scored without it keep the same score for it.
    """
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    num_classes = int(target.max()) + 1
    shape = (len(target), num_classes) if num_classes > 2 else (len(target),)
    scores = np.full(shape, _UNKNOWN if num_classes > 2 else 0.0)
    for fitted, held_out in folds.split(groups, target, groups):
        classes = np.unique(target[fitted])
        if len(classes) < 2:
            continue
        columns = np.concatenate(
            [_encode_feature(values, fitted) for values in table.values()], axis=1
        )
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
        model.fit(columns[fitted], target[fitted])
        decision = model.decision_function(columns[held_out])
        if scores.ndim == 1:
            scores[held_out] = decision
        elif decision.ndim == 1:
            scores[np.ix_(held_out, classes)] = np.stack([-decision, decision], axis=1)
        else:
            scores[np.ix_(held_out, classes)] = decision
    return scores


def _encode_feature(values: Sequence[Value], fitted: IntArray) -> FloatArray:
    """A feature as numbers [N, K]; scales, bins and categories come from the fitted files alone."""
    shared = Counter(values[index] for index in fitted)
    common = [
        value for value, count in shared.most_common(_MOST_COMMON) if count >= _COMMON * len(fitted)
    ]
    categories = np.array([[value == other for other in common] for value in values], dtype=float)
    numbers = np.array([v if isinstance(v, float) else np.nan for v in values])
    finite = numbers[fitted][np.isfinite(numbers[fitted])]
    if not len(finite):
        return categories
    # Numbers in units of their own spread, and the eighth that each lies in; zeros where missing.
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, _NUM_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, numbers, side="right")[:, None] == np.arange(len(edges) + 1)
    linear = np.clip((numbers - finite.mean()) / (float(finite.std()) or 1.0), -5, 5)[:, None]
    scaled = np.where(np.isfinite(numbers)[:, None], np.concatenate([linear, bins], axis=1), 0.0)
    return np.concatenate([categories, scaled], axis=1)
