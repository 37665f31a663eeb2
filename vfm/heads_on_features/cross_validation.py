"""Cross-validation of heads on frozen features: out-of-fold scores of many candidates, from one pass over the folds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.metrics import average_precision_score
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.heads_on_features import (
    LEAST_VOTE,
    fit_lda,
    fit_nearest_mean,
    scale_features,
)

from vfm.heads_on_features.logistic import Problem, Scaling
from vfm.heads_on_features.neighbors import score_neighbors
from vfm.heads_on_features.tip_adapter import TipAdapter

HeadName = Literal["neighbors", "nearest_mean", "lda", "logistic", "tip_adapter", "words"]

FloatArray = NDArray[np.float64]
_TOLERANCE = 1e-4
"""Of the search for a fold's head: as good for a comparison as a closer one, and several times as fast."""
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Candidate:
    """A head on frozen features, with its settings."""

    head: HeadName = "logistic"
    """Kind of the head."""
    scaling: Scaling = "l2"
    """What features go through; kNN normalizes them by itself, the nearest mean also centers them."""
    c: float = 1.0
    """Inverse of the penalty of logistic regression."""
    k: int = 5
    """Number of neighbors of kNN."""
    adapter: TipAdapter | None = None
    """Labels as words, of `tip_adapter` and `words`."""


@dataclass(frozen=True, eq=False)
class CandidateScores:
    """What a candidate gives for images that it was not fitted on. N images, C labels."""

    candidate: Candidate
    scores: FloatArray
    """Out-of-fold probabilities, [N, C]."""
    temperature: float
    """What the logits were divided by for the least loss."""
    metric: float
    """Accuracy; mean average precision where several labels may apply."""
    loss: float
    """Mean negative log-likelihood of the true classes, or of each yes and no, at that temperature."""


def cross_validate(
    features: ArrayLike,
    target: ArrayLike,
    folds: ArrayLike,
    candidates: Sequence[Candidate],
    *,
    num_labels: int | None = None,
    class_weights: ArrayLike | None = None,
    sample_weights: ArrayLike | None = None,
    multilabel: bool = False,
) -> list[CandidateScores]:
    """Score every image by heads that were fitted on the other folds; candidates of one scaling share their work.

    Args:
        features: Embeddings, [N, D].
        target: Classes, int [N]; or with `multilabel` zeros and ones, [N, C].
        folds: Fold of each image, int [N]; images of one fold are scored by a head fitted on all others.
        candidates: Heads to compare.
        num_labels: Number of labels C; by default one more than the highest class.
        class_weights: How much each class counts in logistic regression, [C].
        sample_weights: How much each image counts in logistic regression, [N], 1 on average; scores are judged alike.
        multilabel: Whether several labels, or none, may apply to an image.

    Returns:
        The scores of each candidate, in their order.

    Raises:
        DataError: There is one fold only.
        OptionError: A candidate cannot give several labels.
    """
    numbers = np.unique(np.asarray(folds))
    if len(numbers) < 2:
        raise DataError(
            f"There is {len(numbers)} fold. Give two or more, so that each image is scored by a head fitted on others."
        )
    options: dict[str, Any] = {
        "num_labels": num_labels,
        "class_weights": class_weights,
        "sample_weights": sample_weights,
    }
    return score_folds(features, target, folds, candidates, multilabel=multilabel, **options)


def score_folds(
    features: ArrayLike,
    target: ArrayLike,
    folds: ArrayLike,
    candidates: Sequence[Candidate],
    *,
    num_labels: int | None = None,
    class_weights: ArrayLike | None = None,
    sample_weights: ArrayLike | None = None,
    multilabel: bool = False,
) -> list[CandidateScores]:
    """Score the images of all folds but fold -1, by heads that were fitted on all others; else as `cross_validate`.

    Returns:
        The scores of each candidate, NaN for images of fold -1, which temperature and metrics leave out.
    """
    values, labels, parts = np.asarray(features), np.asarray(target), np.asarray(folds)
    count = labels.shape[1] if multilabel else num_labels or int(labels.max()) + 1
    logits = np.full((len(candidates), len(values), count), np.nan)
    learned = mark_learned(labels, parts, multilabel) & (parts >= 0)
    for number in np.unique(parts[parts >= 0]).tolist():
        held_out = parts == number
        each = None if sample_weights is None else np.asarray(sample_weights)[~held_out]
        fitted = FoldFitter(
            values[~held_out], labels[~held_out], count, class_weights, multilabel, each
        )
        for index, part in fitted.score(candidates, values[held_out]):
            logits[index, held_out] = part
    return [
        judge(candidate, each, labels, learned, multilabel)
        for candidate, each in zip(candidates, logits, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class FoldFitter:
    """Fits candidates on the images outside a fold."""

    features: NDArray[Any]
    target: NDArray[Any]
    num_labels: int
    class_weights: ArrayLike | None
    multilabel: bool
    sample_weights: ArrayLike | None = None

    def score(
        self, candidates: Sequence[Candidate], features: NDArray[Any]
    ) -> Iterable[tuple[int, FloatArray]]:
        """Yield the index of each candidate and its logits [M, C] for other features, [M, D]."""
        paths: defaultdict[Scaling, list[int]] = defaultdict(list)
        for index, candidate in enumerate(candidates):
            if candidate.head == "logistic":
                paths[candidate.scaling].append(index)
            else:
                yield index, self._score_simple(candidate, features)
        for scaling, indices in paths.items():
            problem = Problem.build(
                self.features,
                self.target,
                scaling,
                self.num_labels,
                self.class_weights,
                self.multilabel,
                self.sample_weights,
            )
            indices.sort(key=lambda index: candidates[index].c)
            heads = problem.solve_path([candidates[index].c for index in indices], _TOLERANCE)
            for index, head in zip(indices, heads, strict=True):
                yield index, head.compute_logits(features)

    def _score_simple(self, candidate: Candidate, features: NDArray[Any]) -> FloatArray:
        if candidate.adapter is not None:
            return candidate.adapter.compute_logits(features, self.features, self.target)
        if candidate.head == "neighbors":
            target = self.target if self.multilabel else np.eye(self.num_labels)[self.target]
            votes = score_neighbors(features, self.features, target, k=candidate.k)
            votes = np.clip(votes, LEAST_VOTE, 1 - LEAST_VOTE)
            return np.log(votes) - (np.log1p(-votes) if self.multilabel else 0.0)
        if self.multilabel:
            raise OptionError(
                f"The head '{candidate.head}' gives one label an image, but several may apply. "
                "Choices: neighbors, logistic."
            )
        fit = fit_lda if candidate.head == "lda" else fit_nearest_mean
        normalizes = candidate.scaling == "l2"
        train, test = (scale_features(f, None, normalizes) for f in (self.features, features))
        return fit(train, self.target, self.num_labels).compute_logits(test)


def mark_learned(target: NDArray[Any], folds: NDArray[Any], multilabel: bool) -> NDArray[np.bool_]:
    """Return for each image whether its class occurs outside its fold, bool [N]: of others no head can know."""
    learned = np.ones(len(target), np.bool_)
    if not multilabel:
        for number in np.unique(folds):
            inside = folds == number
            learned[inside] = np.isin(target[inside], target[~inside])
    return learned


def judge(
    candidate: Candidate,
    logits: FloatArray,
    target: NDArray[Any],
    learned: NDArray[np.bool_],
    multilabel: bool,
) -> CandidateScores:
    """Return the scores of a candidate's out-of-fold logits at their best temperature, and metrics of them.

    Args:
        candidate: Head that gave the logits.
        logits: Out-of-fold logits, [N, C]; rows of NaN for images that were not scored.
        target: Classes, int [N]; or with `multilabel` zeros and ones, [N, C].
        learned: Images whose class the head could know, bool [N]; the others count as wrong, but not in the loss.
        multilabel: Whether several labels may apply to an image.
    """
    temperature, loss = fit_temperature(logits[learned], target[learned], multilabel)
    scores = expit(logits / temperature) if multilabel else softmax(logits / temperature, axis=1)
    judged = np.isfinite(scores).all(axis=1)
    metric = compute_metric(scores[judged], target[judged], multilabel)
    return CandidateScores(candidate, scores, temperature, metric, loss)


def compute_metric(scores: FloatArray, target: NDArray[Any], multilabel: bool) -> float:
    """Return the accuracy, or the mean average precision over labels that some but not all images have."""
    if not multilabel:
        return float((scores.argmax(axis=1) == target).mean())
    positives = target.sum(axis=0)
    columns = np.flatnonzero((positives > 0) & (positives < len(target)))
    each = [average_precision_score(target[:, k], scores[:, k]) for k in columns]
    return float(np.mean(each)) if each else 0.0


def compute_loss(scores: NDArray[Any], target: NDArray[Any], least: float = 1e-6) -> float:
    """Return the mean negative log-likelihood of the true classes, or of each yes and no; no score is below `least`."""
    return float(compute_losses(scores, target, least).mean())


def compute_losses(scores: NDArray[Any], target: NDArray[Any], least: float) -> FloatArray:
    """Return the negative log-likelihood of each image, [N]: of its class, or the mean over each yes and no.

    `scores` are probabilities [N, C], and none counts as less than `least`; `target` is int [N], or zeros and ones
    [N, C] where several labels may apply.
    """
    likely = np.clip(scores, least, 1 - least)
    if target.ndim == 1:
        losses: FloatArray = -np.log(likely[np.arange(len(target)), target])
    else:
        losses = -np.log(np.where(target > 0, likely, 1 - likely)).mean(axis=1)
    return losses


def fit_temperature(
    logits: FloatArray, target: NDArray[Any], multilabel: bool
) -> tuple[float, float]:
    """Return the temperature of the least mean negative log-likelihood (Guo et al., 2017), and that loss.

    One image more, of which every answer is as likely, keeps it above zero where all answers are right.

    Args:
        logits: Logits, [N, C].
        target: Classes, int [N]; or with `multilabel` zeros and ones, [N, C].
        multilabel: Whether several labels may apply to an image.
    """
    if len(logits) == 0:
        return 1.0, 0.0

    def compute_scaled(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if multilabel:
            terms = np.where(target > 0.5, log_expit(scaled), log_expit(-scaled))
            uniform = 0.5 * (log_expit(scaled) + log_expit(-scaled))
            return float(-(terms.sum() + uniform.mean(axis=0).sum()) / terms.size)
        log_scores = log_softmax(scaled, axis=1)
        right = log_scores[np.arange(len(target)), target]
        return float(-(right.sum() + log_scores.mean()) / len(target))

    best = minimize_scalar(compute_scaled, bounds=np.log(_TEMPERATURES), method="bounded")
    return float(np.exp(best.x)), float(best.fun)
