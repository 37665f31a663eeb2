"""Linear probe, solved: C and the scaling of features by cross-validation, then one fit on all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from vfm_runtime.heads_on_features import AffineHead

from vfm.heads_on_features.cross_validation import (
    Candidate,
    CandidateScores,
    score_folds,
)
from vfm.heads_on_features.fit import cool_head
from vfm.heads_on_features.logistic import (
    SCALINGS,
    Scaling,
    compute_power,
    fit_logistic_regression,
)

FloatArray = NDArray[np.float64]
STRENGTHS = tuple(np.geomspace(0.1, 1e5, 13).tolist())
"""Values of C for features of which the mean squared distance from their mean is 1."""
FEW_IMAGES = 100
"""Number of images below which several cross-validations are cheap, and choose better than one."""
_MANY_IMAGES = 1000
"""Number of images from which scalings are told apart reliably."""
_MOST_STRENGTH = 1e3
"""Largest of them for many images: these need a penalty, and take longest without one."""
_GRID_IMAGES, _GRID_LABELS = 3000, 100
"""Most images and labels that the whole grid is tried on: what suits them suits more."""
_GRID_FOLDS = 2
"""Folds that judge the grid where it is tried on a part of the images."""
_MOST_WORK = 1e9
"""Images times features times labels of all folds together up to which every image is scored; of more, one fold."""


@dataclass(frozen=True, eq=False)
class Solved:
    """A linear head, and how it did on images that it had not seen. N images, C labels."""

    head: AffineHead
    """Fitted on all images."""
    c: float
    """Inverse of the penalty, in units of the scaled features."""
    scaling: Scaling
    """What features go through."""
    scores: FloatArray
    """Out-of-fold probabilities, [N, C]; rows of NaN for images that were in no fold that was scored."""
    metric: float
    """Accuracy of these scores; mean average precision where several labels may apply."""
    loss: float
    """Their mean negative log-likelihood."""


def list_candidates(features: ArrayLike) -> list[Candidate]:
    """List logistic regression with every C of the grid: on features of norm 1, of many images with every scaling.

    On few images the choice among all scalings costs more than the best of them gains.
    """
    is_large = len(np.asarray(features)) >= _MANY_IMAGES
    scalings: Sequence[Scaling] = SCALINGS if is_large else ("l2",)
    return [
        Candidate("logistic", scaling, strength / compute_power(features, scaling))
        for scaling in scalings
        for strength in STRENGTHS
        if strength <= _MOST_STRENGTH or not is_large
    ]


def solve_linear(
    features: ArrayLike,
    target: ArrayLike,
    folds: ArrayLike,
    *,
    num_labels: int | None = None,
    class_weights: ArrayLike | None = None,
    sample_weights: ArrayLike | None = None,
    multilabel: bool = False,
) -> Solved:
    """Choose C and scaling by cross-validation, and fit the head on all images.

    Of many images, or labels, the choice is made on a part of them, and the chosen setting scores all.

    Args:
        features: Embeddings, [N, D].
        target: Classes, int [N]; or with `multilabel` zeros and ones, [N, C].
        folds: Fold of each image from 0, int [N]; or of several cross-validations, [R, N].
        num_labels: Number of labels C; by default one more than the highest class.
        class_weights: How much each class counts, [C]; with `multilabel` where the label applies.
        sample_weights: How much each image counts where heads are fitted, [N], 1 on average; scores are judged alike.
        multilabel: Whether several labels, or none, may apply to an image.
    """
    values, labels = np.asarray(features), np.asarray(target)
    parts = np.atleast_2d(folds)
    count = labels.shape[1] if multilabel else num_labels or int(labels.max()) + 1
    weights = np.ones(count) if class_weights is None else np.asarray(class_weights)
    each_counts = np.ones(len(values)) if sample_weights is None else np.asarray(sample_weights)
    rows, columns = _choose_part(labels, count, multilabel)
    some = labels[rows][:, columns] if multilabel else np.searchsorted(columns, labels[rows])
    candidates = list_candidates(values[rows])
    best = choose_candidate(
        [
            score_folds(
                values[rows],
                some,
                each[rows] if len(rows) == len(values) else _keep_folds(each[rows], _GRID_FOLDS),
                candidates,
                num_labels=len(columns),
                class_weights=weights[columns],
                sample_weights=each_counts[rows],
                multilabel=multilabel,
            )
            for each in parts
        ]
    )
    options: dict[str, Any] = {
        "num_labels": count,
        "class_weights": weights,
        "sample_weights": each_counts,
        "multilabel": multilabel,
    }
    if len(rows) < len(values):
        work = values.size * count * len(np.unique(parts[0]))
        judging = _keep_folds(parts[0], 1) if work > _MOST_WORK else parts[0]
        best = score_folds(values, labels, judging, [best.candidate], **options)[0]
    chosen = best.candidate
    head = fit_logistic_regression(values, labels, c=chosen.c, scaling=chosen.scaling, **options)
    cooled = cool_head(head, best.temperature)
    return Solved(cooled, chosen.c, chosen.scaling, best.scores, best.metric, best.loss)


def choose_candidate(repeats: Sequence[Sequence[CandidateScores]]) -> CandidateScores:
    """Return the candidate of the least loss among those with the best metric, or nearly: half a standard error.

    Args:
        repeats: For each cross-validation the scores of every candidate, in the same order.

    Returns:
        Its scores of the first cross-validation.
    """
    metrics = np.mean([[each.metric for each in repeat] for repeat in repeats], axis=0)
    losses = np.mean([[each.loss for each in repeat] for repeat in repeats], axis=0)
    best, number = float(metrics.max()), len(repeats[0][0].scores)
    losses[metrics < best - 0.5 * np.sqrt(best * (1 - best) / number)] = np.inf
    return repeats[0][int(losses.argmin())]


def _choose_part(
    target: NDArray[Any], num_labels: int, multilabel: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return images and labels to try the grid on, spread evenly: all of them where they are few."""
    columns = _spread(num_labels, _GRID_LABELS)
    rows = np.arange(len(target))
    if not multilabel:
        rows = rows[np.isin(target, columns)]
        rows = rows[np.argsort(target[rows], kind="stable")]
    return np.sort(rows[_spread(len(rows), _GRID_IMAGES)]), columns


def _keep_folds(folds: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """Return folds of which only the first ones judge; -1 for the images of the others."""
    return np.where(np.isin(folds, np.unique(folds)[:number]), folds, -1)


def _spread(total: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(np.int64))
