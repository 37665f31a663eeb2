"""Scores of a classifier, all computed from its confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from vfm_runtime.errors import DataError, OptionError

from vfm.metrics.intervals import bootstrap
from vfm.metrics.ranking import Ranking, class_rankings, figure, mean_over_classes

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_LEVEL = 0.95
_TOP = 5


def confusion_matrix(target: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int) -> IntArray:
    """Count samples by true class (row) and predicted class (column), int64 `[C, C]`.

    Args:
        target: True class indices, int `[N]`, each in `[0, C)`.
        predicted: Predicted class indices, int `[N]`, each in `[0, C)`.
        num_classes: Number of classes C.
    """
    if num_classes < 1:
        raise OptionError(f"num_classes is {num_classes}. Pass the number of labels, at least 1.")
    rows = _checked_indices("target", target, num_classes)
    columns = _checked_indices("predicted", predicted, num_classes)
    if rows.shape != columns.shape:
        raise DataError(
            f"target has {rows.size} samples, predicted has {columns.size}. "
            "Pass one prediction for each target."
        )
    cells = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def accuracy(matrix: npt.ArrayLike) -> FloatArray:
    """Share of samples on the diagonal, between 0 and 1.

    Args:
        matrix: Confusion matrices, int `[..., C, C]`, rows are the truth.

    Returns:
        Float `[...]`; a scalar for one matrix.
    """
    hits, support, _ = _margins(matrix)
    return np.asarray(hits.sum(-1) / support.sum(-1), dtype=np.float64)[()]


def macro_f1(matrix: npt.ArrayLike) -> FloatArray:
    """Unweighted mean over classes of the F1 score, between 0 and 1.

    A class with neither a true sample nor a prediction is left out of the mean. A class
    with predictions but no true sample counts as F1 0. Both as in scikit-learn's
    `f1_score(average="macro")` on the labels that occur.

    Args:
        matrix: Confusion matrices, int `[..., C, C]`, rows are the truth.

    Returns:
        Float `[...]`; a scalar for one matrix.
    """
    hits, support, predicted = _margins(matrix)
    present = support + predicted > 0
    f1 = _ratio(2 * hits, support + predicted)
    return np.asarray(f1.sum(-1) / present.sum(-1), dtype=np.float64)[()]


def per_class(matrix: npt.ArrayLike, labels: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each class: label, precision, recall, f1 and support (true samples).

    A ratio over no samples, such as the precision of a class never predicted, is given
    as 0; the support tells such rows apart.

    Args:
        matrix: A confusion matrix, int `[C, C]`, rows are the truth.
        labels: Names of the C classes.
    """
    array = np.asarray(matrix)
    if array.ndim != 2:
        raise DataError(
            f"per_class takes one confusion matrix [C, C], not shape {array.shape}. "
            "Pass one matrix of the batch."
        )
    hits, support, predicted = _margins(array)
    check_labels(labels, len(hits))
    precision, recall = _ratio(hits, predicted), _ratio(hits, support)
    f1 = _ratio(2 * hits, support + predicted)
    return [
        {
            "label": str(label),
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "support": int(support[index]),
        }
        for index, label in enumerate(labels)
    ]


def classification_results(
    probabilities: npt.ArrayLike, target: npt.ArrayLike, labels: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Score class probabilities against the truth, as a dictionary ready for JSON.

    The class with the largest score is the prediction, the first one of a tie. Headline figures
    carry a 95 % bootstrap interval over the samples: accuracy, macro F1, for more than five classes
    top-5 accuracy, and the AUROC of each class against all others, averaged over the classes that occur.

    Args:
        probabilities: Scores by class, float `[N, C]`; only their order matters.
        target: True class indices, int `[N]`, each in `[0, C)`.
        labels: Names of the C classes.
        seed: Seed of the bootstrap.
    """
    scores = checked_scores(probabilities)
    truth = np.asarray(target)
    if truth.shape != scores.shape[:1]:
        raise DataError(
            f"target has shape {truth.shape}, probabilities have shape {scores.shape}. "
            f"Pass one class index for each row, shape {scores.shape[:1]}."
        )
    check_labels(labels, scores.shape[1])
    matrix = confusion_matrix(truth, scores.argmax(axis=1), scores.shape[1])
    positive = truth[:, None] == np.arange(scores.shape[1])
    rankings = class_rankings(scores, positive)
    macro_auroc = mean_over_classes(Ranking.auroc, rankings)
    return {
        "num_samples": len(scores),
        "accuracy": bootstrap(accuracy, matrix, level=_LEVEL, seed=seed).to_dict(),
        "macro_f1": bootstrap(macro_f1, matrix, level=_LEVEL, seed=seed).to_dict(),
        **_top5(scores, truth, seed),
        "auroc": figure(macro_auroc, scores.shape, seed, _LEVEL),
        "level": _LEVEL,
        "per_class": [
            row | ranking.to_dict()
            for row, ranking in zip(per_class(matrix, labels), rankings, strict=True)
        ],
        "confusion_matrix": matrix.tolist(),
    }


def _top5(scores: npt.NDArray[Any], truth: npt.NDArray[Any], seed: int) -> dict[str, Any]:
    """Share of samples whose class is among the five of largest score; nothing up to five classes."""
    if scores.shape[1] <= _TOP:
        return {}
    own = scores[np.arange(len(truth)), truth][:, None]
    # The first of a tie is the better one, as it is for the prediction.
    earlier = np.arange(scores.shape[1]) < truth[:, None]
    better = (scores > own) | ((scores == own) & earlier)
    hits = int((better.sum(axis=1) < _TOP).sum())
    counts = [hits, len(truth) - hits]
    share = bootstrap(lambda drawn: drawn[:, 0] / drawn.sum(1), counts, level=_LEVEL, seed=seed)
    return {"top5_accuracy": share.to_dict()}


def _margins(matrix: npt.ArrayLike) -> tuple[IntArray, IntArray, IntArray]:
    """Hits, true samples and predictions by class, each `[..., C]`."""
    array = np.asarray(matrix)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2]:
        raise DataError(
            f"A confusion matrix is square, [..., C, C], but the shape is {array.shape}. "
            "Make one with confusion_matrix(target, predicted, num_classes)."
        )
    support = array.sum(-1)
    if not support.any(-1).all():
        raise DataError(
            f"A confusion matrix of shape {array.shape} counts no sample, so it has no score. "
            "Check that there are samples to score."
        )
    return np.diagonal(array, axis1=-2, axis2=-1), support, array.sum(-2)


def _ratio(numerator: IntArray, denominator: IntArray) -> FloatArray:
    """The quotient, with 0 where the denominator is 0 (the numerator is 0 there too)."""
    return np.asarray(numerator / np.maximum(denominator, 1), dtype=np.float64)


def _checked_indices(name: str, values: npt.ArrayLike, num_classes: int) -> IntArray:
    """Class indices as int64 `[N]`, refused when any is not a class."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(
            f"{name} has shape {array.shape}, but must be class indices [N]. "
            "For scores [N, C] take argmax over the last axis."
        )
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise DataError(
            f"{name} has dtype {array.dtype}, but must be integer class indices. "
            "Convert names with labels.index(name)."
        )
    wrong = array[(array < 0) | (array >= num_classes)]
    if wrong.size:
        raise DataError(
            f"{name} contains class {wrong[0]}, but with {num_classes} classes the choices "
            f"are 0 to {num_classes - 1}. Check the labels or raise num_classes."
        )
    return array.astype(np.int64)


def checked_scores(probabilities: npt.ArrayLike) -> npt.NDArray[Any]:
    """Scores `[N, C]`, refused when there are none or any is NaN."""
    scores = np.asarray(probabilities)
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise DataError(
            f"probabilities have shape {scores.shape}, but must be [N, C]. "
            "Pass one row for each sample with one score for each class."
        )
    if len(scores) == 0:
        raise DataError("There are no samples to score (N = 0). Check the data split.")
    wrong = np.isnan(scores).any(axis=1)
    if wrong.any():
        raise DataError(
            f"{wrong.sum()} of {len(scores)} samples have NaN scores, the first is sample "
            f"{wrong.argmax()}. Look for a diverged training or an overflow in half precision."
        )
    return scores


def check_labels(labels: Sequence[str], num_classes: int) -> None:
    """Refuse names that are not one for each class."""
    if len(labels) != num_classes:
        raise DataError(
            f"There are {len(labels)} labels for {num_classes} classes. "
            "Pass one label for each class, in the order of the class indices."
        )
