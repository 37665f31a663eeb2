"""Multilabel metrics: mean average precision, F1 and exact match of labels that are independent of one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from vfm_runtime.errors import DataError

from vfm.metrics.classification import (
    average_f1,
    check_labels,
    check_scores,
    estimate_fraction,
    list_class_metrics,
)
from vfm.metrics.intervals import LEVEL
from vfm.metrics.ranking import (
    FloatArray,
    Ranking,
    average_over_classes,
    estimate_metric,
    rank_classes,
)


def compute_mean_average_precision(scores: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Mean over labels of the average precision; labels that no image has are left out.

    Args:
        scores: float [N, C], higher where a label applies.
        target: [N, C] of zeros and ones.

    Raises:
        ValueError: Shapes differ, there are no samples, a score is NaN, or a target is neither 0 nor 1.
    """
    rankings = rank_classes(*_check_pairs(scores, target))
    once = np.ones((1, len(np.asarray(target))), dtype=np.int64)
    return float(average_over_classes(Ranking.average_precision, rankings)(once)[0])


def compute_f1_scores(
    scores: npt.ArrayLike, target: npt.ArrayLike, threshold: float = 0.5
) -> dict[str, float]:
    """`macro_f1`, the mean over labels that occur or were predicted, and `micro_f1`, of all decisions together.

    Args:
        scores: float [N, C], such as probabilities.
        target: [N, C] of zeros and ones.
        threshold: Least score of a label that is taken to apply.

    Raises:
        ValueError: Shapes differ, there are no samples, a score is NaN, or a target is neither 0 nor 1.
    """
    values, truth = _check_pairs(scores, target)
    cells = _count_cells(values >= threshold, truth).sum(axis=0)
    return {
        "macro_f1": float(average_f1(*cells.T)),
        "micro_f1": float(average_f1(*cells.sum(0, keepdims=True).T)),
    }


def compute_multilabel_results(
    probabilities: npt.ArrayLike,
    target: npt.ArrayLike,
    labels: Sequence[str],
    *,
    threshold: float = 0.5,
    seed: int = 0,
) -> dict[str, Any]:
    """Score independent labels against the truth, as a dictionary ready for JSON.

    Headline metrics carry a 95 % bootstrap interval over the images. Labels that no image has are
    listed as `absent`, and left out of the means over labels of average precision and AUROC.

    Args:
        probabilities: float [N, C], for each image the probability of each label.
        target: [N, C] of zeros and ones.
        labels: Names of the C labels.
        threshold: Least score of a label that is taken to apply.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: Shapes differ, there are no samples, a score is NaN, or a target is neither 0 nor 1.
    """
    scores, truth = _check_pairs(probabilities, target)
    check_labels(labels, scores.shape[1])
    applies = scores >= threshold
    rankings = rank_classes(scores, truth)
    cells = _count_cells(applies, truth)
    hits, support, predicted = cells.sum(axis=0).T

    def estimate(statistic: Any) -> dict[str, float | None]:
        return estimate_metric(statistic, scores.shape, seed)

    def compute_macro_f1(counts: npt.ArrayLike) -> FloatArray:
        return average_f1(*np.moveaxis(_sum_drawn(counts, cells), -1, 0))

    def compute_micro_f1(counts: npt.ArrayLike) -> FloatArray:
        drawn = _sum_drawn(counts, cells).sum(axis=1, keepdims=True)
        return average_f1(*np.moveaxis(drawn, -1, 0))

    return {
        "num_samples": len(scores),
        "mAP": estimate(average_over_classes(Ranking.average_precision, rankings)),
        "macro_f1": estimate(compute_macro_f1),
        "micro_f1": estimate(compute_micro_f1),
        "auroc": estimate(average_over_classes(Ranking.auroc, rankings)),
        "exact_match": estimate_fraction(
            int((applies == truth).all(axis=1).sum()), len(scores), seed
        ),
        "level": LEVEL,
        "threshold": threshold,
        "predicted_none": int((~applies.any(axis=1)).sum()),
        "absent": [str(labels[k]) for k in np.flatnonzero(~truth.any(axis=0)).tolist()],
        "per_class": list_class_metrics(hits, support, predicted, rankings, labels),
    }


def _count_cells(
    applies: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Hits, true and predicted labels of each image, int [N, C, 3]."""
    return np.stack([applies & truth, truth, applies], axis=-1).astype(np.int64)


def _sum_drawn(counts: npt.ArrayLike, cells: npt.NDArray[np.int64]) -> FloatArray:
    """Sums over images that count several times, [B, C, 3]."""
    # In floats: numpy multiplies matrices of integers without BLAS.
    flat = cells.reshape(len(cells), -1).astype(np.float64)
    return (np.asarray(counts, dtype=np.float64) @ flat).reshape(-1, *cells.shape[1:])


def _check_pairs(
    scores: npt.ArrayLike, target: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    values, truth = check_scores(scores), np.asarray(target)
    if truth.shape != values.shape:
        raise DataError(
            f"target has shape {truth.shape}, scores have shape {values.shape}. "
            "Pass a zero or a one for each image and label."
        )
    if not np.isin(truth, (0, 1)).all():
        wrong = truth[~np.isin(truth, (0, 1))][0]
        raise DataError(
            f"target holds {wrong}. Pass ones where a label applies and zeros elsewhere."
        )
    return values, truth.astype(bool)
