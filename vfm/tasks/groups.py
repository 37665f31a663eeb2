"""The figures of each group that the data names: sites, cameras, years."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.metrics import accuracy, bootstrap, mean_average_precision


def group_results(
    scores: NDArray[np.float32],
    target: NDArray[Any],
    groups: Sequence[tuple[str, ...]],
    columns: Sequence[str],
) -> dict[str, list[dict[str, Any]]]:
    """Accuracy, or mean average precision for independent labels, of each value of each group column.

    Args:
        scores: [N, C].
        target: int [N], or float [N, C].
        groups: For each image a value by column.
        columns: Names of the columns.
    """
    return {
        column: [
            {"group": value} | _figures(scores[chosen], target[chosen])
            for value, chosen in _members([row[place] for row in groups])
        ]
        for place, column in enumerate(columns)
    }


def _members(values: Sequence[str]) -> list[tuple[str, NDArray[np.bool_]]]:
    array = np.array(values)
    return [(value, array == value) for value in sorted(set(values))]


def _figures(scores: NDArray[np.float32], target: NDArray[Any]) -> dict[str, Any]:
    if target.ndim == 2:
        seen = bool((target > 0.5).any())
        score = mean_average_precision(scores, target) if seen else None
        return {"num_samples": len(target), "mAP": score}
    right = int((scores.argmax(axis=1) == target).sum())
    # A right-or-wrong matrix has the accuracy of the whole one.
    counts = np.array([[right, len(target) - right], [0, 0]])
    return {"num_samples": len(target), "accuracy": bootstrap(accuracy, counts).to_dict()}
