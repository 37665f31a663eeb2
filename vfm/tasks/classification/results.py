"""Results of a split of labelled images: metrics, those of each group, mistakes_<split>.csv."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.data import ImageData
from vfm.metrics import (
    compute_accuracy,
    compute_classification_results,
    compute_confusion_matrix,
    compute_interval,
    compute_macro_f1,
    compute_mean_average_precision,
    compute_multilabel_results,
)
from vfm.metrics.multilabel import compute_f1_scores
from vfm.tasks.classification.mistakes import find_mistakes
from vfm.tasks.classification.page import write_page
from vfm.tasks.results import SplitPredictions, save_results


def compute_label_metrics(scores: NDArray[np.float32], target: NDArray[Any]) -> dict[str, float]:
    """Return the few metrics that every validation logs.

    Args:
        scores: Probabilities of the labels, [N, C].
        target: int64 [N], true classes; or float32 [N, C] of zeros and ones where several labels may apply.
    """
    if target.ndim == 2:
        return {
            "mAP": compute_mean_average_precision(scores, target),
            "macro_f1": compute_f1_scores(scores, target)["macro_f1"],
        }
    matrix = compute_confusion_matrix(target, scores.argmax(1), scores.shape[1])
    return {
        "accuracy": float(compute_accuracy(matrix)),
        "macro_f1": float(compute_macro_f1(matrix)),
    }


def write_label_results(
    folder: Path,
    split: str,
    predictions: SplitPredictions,
    labels: Sequence[str],
    data: ImageData,
    more: dict[str, Any],
) -> None:
    """Add a split's results to `results.json`, and write its page, pictures and list of mistakes beside it.

    The predictions hold `scores` [N, C] and `target`, int64 [N] or float32 [N, C]; `more` goes into the JSON too.
    """
    scores, target = predictions.stack("scores"), predictions.stack("target")
    compute = compute_multilabel_results if data.multilabel else compute_classification_results
    results = compute(scores, target, labels) | more
    records = [data.records[split][i] for i in predictions.position]
    groups = [record.groups for record in records]
    results["groups"] = compute_group_metrics(scores, target, groups, data.group_columns)
    save_results(folder, split, results)
    mistakes = find_mistakes(scores, target, records, labels)
    with (folder / f"mistakes_{split}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "true", "answer", "score"))
        writer.writerows((m.record.name, m.truth, m.answer, f"{m.score:.6f}") for m in mistakes)
    value_range = None if data.preprocess is None else data.preprocess.value_range
    write_page(folder, split, results, scores, target, labels, mistakes, value_range)


def compute_group_metrics(
    scores: NDArray[np.float32],
    target: NDArray[Any],
    groups: Sequence[tuple[str, ...]],
    columns: Sequence[str],
) -> dict[str, list[dict[str, Any]]]:
    """Return the accuracy, or mean average precision, of each value of each group column: of sites, cameras, years.

    Args:
        scores: Probabilities of the labels, [N, C].
        target: int [N], true classes; or float [N, C] where several labels may apply.
        groups: For each image a value by column.
        columns: Names of the columns.
    """
    results = {}
    for index, column in enumerate(columns):
        values = np.array([row[index] for row in groups])
        results[column] = [
            {"group": value, **_measure_group(scores[values == value], target[values == value])}
            for value in sorted(set(values.tolist()))
        ]
    return results


def _measure_group(scores: NDArray[np.float32], target: NDArray[Any]) -> dict[str, Any]:
    if target.ndim == 2:
        applies = bool((target > 0.5).any())
        score = compute_mean_average_precision(scores, target) if applies else None
        return {"num_samples": len(target), "mAP": score}
    right = int((scores.argmax(axis=1) == target).sum())
    # A right-or-wrong matrix has the accuracy of the whole one.
    counts = np.array([[right, len(target) - right], [0, 0]])
    return {
        "num_samples": len(target),
        "accuracy": compute_interval(compute_accuracy, counts).to_dict(),
    }
