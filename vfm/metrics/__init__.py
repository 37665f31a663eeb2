"""Scores with their uncertainty, in plain numpy: no torch, and nothing known of models."""

from vfm.metrics.classification import (
    accuracy,
    classification_results,
    confusion_matrix,
    macro_f1,
    per_class,
)
from vfm.metrics.intervals import Interval, bootstrap

__all__ = [
    "Interval",
    "accuracy",
    "bootstrap",
    "classification_results",
    "confusion_matrix",
    "macro_f1",
    "per_class",
]
