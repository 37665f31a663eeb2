"""Scores of a model whose labels are independent of one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from vfm_runtime.errors import DataError

from vfm.metrics.classification import check_labels, checked_scores
from vfm.metrics.intervals import bootstrap
from vfm.metrics.ranking import FloatArray, Ranking, class_rankings, figure, mean_over_classes

_LEVEL = 0.95


def mean_average_precision(scores: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Mean over labels of the average precision; labels that no image has are left out.

    Args:
        scores: float [N, C].
        target: [N, C] of zeros and ones.
    """
    rankings = class_rankings(*_checked(scores, target))
    once = np.ones((1, len(np.asarray(target))), dtype=np.int64)
    return float(mean_over_classes(Ranking.average_precision, rankings)(once)[0])


def f1_scores(
    scores: npt.ArrayLike, target: npt.ArrayLike, threshold: float = 0.5
) -> dict[str, float]:
    """`macro_f1`, the mean over labels that occur or were given, and `micro_f1`, of all decisions together.

    Args:
        scores: float [N, C].
        target: [N, C] of zeros and ones.
        threshold: Least score of a label that is taken to apply.
    """
    given, truth = _checked(scores, target)
    cells = _cells(given >= threshold, truth)[None].sum(axis=1)
    return {"macro_f1": float(_macro_f1(cells)[0]), "micro_f1": float(_micro_f1(cells)[0])}


def multilabel_results(
    probabilities: npt.ArrayLike,
    target: npt.ArrayLike,
    labels: Sequence[str],
    *,
    threshold: float = 0.5,
    seed: int = 0,
) -> dict[str, Any]:
    """Score independent labels against the truth, as a dictionary ready for JSON.

    Headline figures carry a 95 % bootstrap interval over the images. Labels that no image has are
    listed as `absent`, and left out of the means over labels of average precision and AUROC.

    Args:
        probabilities: float [N, C].
        target: [N, C] of zeros and ones.
        labels: Names of the C labels.
        threshold: Least score of a label that is taken to apply.
        seed: Of the bootstrap.
    """
    scores, truth = _checked(probabilities, target)
    check_labels(labels, scores.shape[1])
    applies = scores >= threshold
    rankings = class_rankings(scores, truth)

    def ranked(method: Any) -> dict[str, float | None]:
        return figure(mean_over_classes(method, rankings), scores.shape, seed, _LEVEL)

    exact = int((applies == truth).all(axis=1).sum())
    share = bootstrap(
        lambda counts: counts[:, 0] / counts.sum(1), [exact, len(scores) - exact], seed=seed
    )
    cells = _cells(applies, truth)
    return {
        "num_samples": len(scores),
        "mAP": ranked(Ranking.average_precision),
        "macro_f1": figure(
            lambda counts: _macro_f1(_counted(counts, cells)), scores.shape, seed, _LEVEL
        ),
        "micro_f1": figure(
            lambda counts: _micro_f1(_counted(counts, cells)), scores.shape, seed, _LEVEL
        ),
        "auroc": ranked(Ranking.auroc),
        "exact_match": share.to_dict(),
        "level": _LEVEL,
        "threshold": threshold,
        "predicted_none": int((~applies.any(axis=1)).sum()),
        "absent": [str(labels[k]) for k in np.flatnonzero(~truth.any(axis=0)).tolist()],
        "per_class": _per_class(applies, truth, rankings, labels),
    }


def _per_class(
    applies: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.bool_],
    rankings: Sequence[Ranking],
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    hits, given, support = _cells(applies, truth).sum(axis=0).T
    rows = []
    for k, ranking in enumerate(rankings):
        rows.append(
            {
                "label": str(labels[k]),
                "precision": float(hits[k] / max(given[k], 1)),
                "recall": float(hits[k] / max(support[k], 1)),
                "f1": float(2 * hits[k] / max(given[k] + support[k], 1)),
                **ranking.to_dict(),
                "support": int(support[k]),
            }
        )
    return rows


def _cells(applies: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Hits, given and true labels of each image, int [N, C, 3]."""
    return np.stack([applies & truth, applies, truth], axis=-1).astype(np.int64)


def _counted(counts: npt.ArrayLike, cells: npt.NDArray[np.int64]) -> FloatArray:
    """Sums over images that count several times, [B, C, 3]."""
    # In floats: numpy multiplies matrices of integers without BLAS.
    flat = cells.reshape(len(cells), -1).astype(np.float64)
    return (np.asarray(counts, dtype=np.float64) @ flat).reshape(-1, *cells.shape[1:])


def _macro_f1(cells: npt.NDArray[Any]) -> FloatArray:
    """Mean F1 over labels, [B], of hits, given and true labels [B, C, 3]."""
    hits, both = cells[..., 0], cells[..., 1] + cells[..., 2]
    f1 = 2 * hits / np.maximum(both, 1)
    return np.asarray(f1.sum(-1) / np.maximum((both > 0).sum(-1), 1), dtype=np.float64)


def _micro_f1(cells: npt.NDArray[Any]) -> FloatArray:
    hits, given, true = (cells[..., k].sum(-1) for k in range(3))
    return np.asarray(2 * hits / np.maximum(given + true, 1), dtype=np.float64)


def _checked(
    scores: npt.ArrayLike, target: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    given, truth = checked_scores(scores), np.asarray(target)
    if truth.shape != given.shape:
        raise DataError(
            f"target has shape {truth.shape}, scores have shape {given.shape}. "
            "Pass a zero or a one for each image and label."
        )
    if not np.isin(truth, (0, 1)).all():
        wrong = truth[~np.isin(truth, (0, 1))][0]
        raise DataError(
            f"target holds {wrong}. Pass ones where a label applies and zeros elsewhere."
        )
    return given, truth.astype(bool)
