"""Metrics with their uncertainty, in plain numpy: no torch, and nothing known of models."""

from typing import Any

from vfm.metrics.classification import (
    compute_accuracy,
    compute_classification_results,
    compute_confusion_matrix,
    compute_macro_f1,
)
from vfm.metrics.intervals import Interval, compute_interval
from vfm.metrics.multilabel import compute_mean_average_precision, compute_multilabel_results
from vfm.metrics.ranking import Ranking, rank_classes
from vfm.renames import update_path

__all__ = [
    "Interval",
    "Ranking",
    "compute_accuracy",
    "compute_classification_results",
    "compute_confusion_matrix",
    "compute_interval",
    "compute_macro_f1",
    "compute_mean_average_precision",
    "compute_multilabel_results",
    "rank_classes",
]


def __getattr__(name: str) -> Any:
    """Return a function by its name of version 0.1, with a DeprecationWarning."""
    current = update_path(f"{__name__}.{name}").rpartition(".")[2]
    if current == name:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return globals()[current]
