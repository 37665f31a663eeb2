"""Linear probe, solved: C and the scaling of features by cross-validation, then one fit on all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from vfm_runtime.heads_on_features import AffineHead

from vfm.heads_on_features.cross_validation import Candidate, CandidateScores, cross_validate
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
    """List logistic regression with every scaling and C of the grid."""
    return [
        Candidate("logistic", scaling, strength / compute_power(features, scaling))
        for scaling in SCALINGS
        for strength in STRENGTHS
    ]


def solve_linear(
    features: ArrayLike,
    target: ArrayLike,
    folds: ArrayLike,
    *,
    num_labels: int | None = None,
    class_weights: ArrayLike | None = None,
    multilabel: bool = False,
) -> Solved:
    """Choose C and scaling by out-of-fold accuracy (mAP for several labels), and fit the head on all images.

    Args:
        features: Embeddings, [N, D].
        target: Classes, int [N]; or with `multilabel` zeros and ones, [N, C].
        folds: Fold of each image, int [N]; or of several cross-validations, [R, N].
        num_labels: Number of labels C; by default one more than the highest class.
        class_weights: How much each class counts, [C]; with `multilabel` where the label applies.
        multilabel: Whether several labels, or none, may apply to an image.
    """
    options: dict[str, Any] = {
        "num_labels": num_labels,
        "class_weights": class_weights,
        "multilabel": multilabel,
    }
    candidates = list_candidates(features)
    repeats = [
        cross_validate(features, target, each, candidates, **options)
        for each in np.atleast_2d(folds)
    ]
    best = choose_candidate(repeats)
    chosen = best.candidate
    head = fit_logistic_regression(features, target, c=chosen.c, scaling=chosen.scaling, **options)
    cooled = replace(head, weight=head.weight / best.temperature, bias=head.bias / best.temperature)
    return Solved(cooled, chosen.c, chosen.scaling, best.scores, best.metric, best.loss)


def choose_candidate(repeats: Sequence[Sequence[CandidateScores]]) -> CandidateScores:
    """Return the candidate of the best mean metric, and among equals that of the least loss.

    Args:
        repeats: For each cross-validation the scores of every candidate, in the same order.

    Returns:
        Its scores of the first cross-validation.
    """

    def rate(index: int) -> tuple[float, float]:
        scores = [repeat[index] for repeat in repeats]
        return sum(s.metric for s in scores), -sum(s.loss for s in scores)

    return repeats[0][max(range(len(repeats[0])), key=rate)]
