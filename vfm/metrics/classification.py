"""Classification metrics from a confusion matrix (accuracy, F1, precision, recall), top-5 accuracy and AUROC."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from vfm_runtime.errors import DataError, OptionError

from vfm.metrics.intervals import LEVEL, compute_interval
from vfm.metrics.ranking import Ranking, average_over_classes, estimate_metric, rank_classes

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_TOP = 5


def compute_confusion_matrix(
    target: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int
) -> IntArray:
    """Count samples by true class (row) and predicted class (column), int64 `[C, C]`.

    Args:
        target: True class indices, int `[N]`, each in `[0, C)`.
        predicted: Predicted class indices, int `[N]`, each in `[0, C)`.
        num_classes: Number of classes C.

    Raises:
        ValueError: There are no classes, an index is no class, or there are not as many predictions as targets.
    """
    if num_classes < 1:
        raise OptionError(f"num_classes is {num_classes}. Pass the number of labels, at least 1.")
    rows = _check_indices("target", target, num_classes)
    columns = _check_indices("predicted", predicted, num_classes)
    if rows.shape != columns.shape:
        raise DataError(
            f"target has {rows.size} samples, predicted has {columns.size}. "
            "Pass one prediction for each target."
        )
    cells = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def compute_accuracy(matrix: npt.ArrayLike) -> FloatArray:
    """Fraction of samples on the diagonal of confusion matrices, int `[..., C, C]`: float `[...]`, a scalar for one.

    Raises:
        ValueError: It is no confusion matrix, or counts no sample.
    """
    hits, support, _ = _sum_margins(matrix)
    return np.asarray(hits.sum(-1) / support.sum(-1), dtype=np.float64)[()]


def compute_macro_f1(matrix: npt.ArrayLike) -> FloatArray:
    """Unweighted mean over classes of the F1 score of confusion matrices, int `[..., C, C]`: float `[...]`, 0 to 1.

    A class with neither a true sample nor a prediction is left out of the mean. A class
    with predictions but no true sample counts as F1 0. Both as in scikit-learn's
    `f1_score(average="macro")` on the labels that occur.

    Raises:
        ValueError: It is no confusion matrix, or counts no sample.
    """
    return average_f1(*_sum_margins(matrix))


def average_f1(hits: Any, support: Any, predicted: Any) -> FloatArray:
    """Mean F1 over the classes that occur or were predicted, [...], from counts by class [..., C]."""
    both = support + predicted
    f1 = 2 * hits / np.maximum(both, 1)
    return np.asarray(f1.sum(-1) / np.maximum((both > 0).sum(-1), 1), dtype=np.float64)[()]


def list_class_metrics(
    hits: Any, support: Any, predicted: Any, rankings: Sequence[Ranking], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """One row for each class from its counts, int [C]: precision, recall, f1, support, average precision and AUROC.

    A ratio over no samples, such as the precision of a class never predicted, is given
    as 0; the support tells such rows apart.
    """
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    return [
        {
            "label": str(label),
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "support": int(support[index]),
            **rankings[index].to_dict(),
        }
        for index, label in enumerate(labels)
    ]


def compute_classification_results(
    probabilities: npt.ArrayLike, target: npt.ArrayLike, labels: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Score class probabilities against the truth, as a dictionary ready for JSON.

    The class with the largest score is the prediction, the first one of a tie. Headline metrics
    carry a 95 % bootstrap interval over the samples: accuracy, macro F1, for more than five classes
    top-5 accuracy, and the AUROC of each class against all others, averaged over the classes that occur.

    Args:
        probabilities: Scores by class, float `[N, C]`; only their order matters.
        target: True class indices, int `[N]`, each in `[0, C)`.
        labels: Names of the C classes.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: Shapes do not fit, there are no samples, a score is NaN, or a target is no class.
    """
    scores = check_scores(probabilities)
    truth = np.asarray(target)
    if truth.shape != scores.shape[:1]:
        raise DataError(
            f"target has shape {truth.shape}, probabilities have shape {scores.shape}. "
            f"Pass one class index for each row, shape {scores.shape[:1]}."
        )
    check_labels(labels, scores.shape[1])
    matrix = compute_confusion_matrix(truth, scores.argmax(axis=1), scores.shape[1])
    positive = truth[:, None] == np.arange(scores.shape[1])
    rankings = rank_classes(scores, positive)
    results = {
        "num_samples": len(scores),
        "accuracy": compute_interval(compute_accuracy, matrix, seed=seed).to_dict(),
        "macro_f1": compute_interval(compute_macro_f1, matrix, seed=seed).to_dict(),
    }
    if scores.shape[1] > _TOP:
        true_scores = scores[np.arange(len(truth)), truth][:, None]
        # The first of a tie is the better one, as it is for the prediction.
        earlier = np.arange(scores.shape[1]) < truth[:, None]
        better = (scores > true_scores) | ((scores == true_scores) & earlier)
        hits = int((better.sum(axis=1) < _TOP).sum())
        results["top5_accuracy"] = estimate_fraction(hits, len(truth), seed)
    return results | {
        "auroc": estimate_metric(average_over_classes(Ranking.auroc, rankings), scores.shape, seed),
        "level": LEVEL,
        "per_class": list_class_metrics(*_sum_margins(matrix), rankings, labels),
        "confusion_matrix": matrix.tolist(),
    }


def estimate_fraction(hits: int, num: int, seed: int) -> dict[str, float]:
    """The fraction of samples that are hits, with its bootstrap interval, ready for JSON."""
    counts = [hits, num - hits]
    return compute_interval(lambda drawn: drawn[:, 0] / drawn.sum(1), counts, seed=seed).to_dict()


def _sum_margins(matrix: npt.ArrayLike) -> tuple[IntArray, IntArray, IntArray]:
    """Hits, true samples and predictions by class, each `[..., C]`."""
    array = np.asarray(matrix)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2]:
        raise DataError(
            f"A confusion matrix is square, [..., C, C], but the shape is {array.shape}. "
            "Make one with compute_confusion_matrix(target, predicted, num_classes)."
        )
    support = array.sum(-1)
    if not support.any(-1).all():
        raise DataError(
            f"A confusion matrix of shape {array.shape} counts no sample, so it has no score. "
            "Check that there are samples to score."
        )
    return np.diagonal(array, axis1=-2, axis2=-1), support, array.sum(-2)


def _check_indices(name: str, values: npt.ArrayLike, num_classes: int) -> IntArray:
    """Class indices as int64 `[N]`, refused when any is not a class."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(
            f"{name} has shape {array.shape}, but must be class indices [N]. "
            "For scores [N, C] take argmax over the last axis."
        )
    if array.size and array.dtype.kind not in "iu":
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


def check_scores(probabilities: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return scores as an array `[N, C]`, refused when there are none or any is NaN."""
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
