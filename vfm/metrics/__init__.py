"""Scores with their uncertainty, in plain numpy: no torch, and nothing known of models."""

from vfm.metrics.classification import (
    accuracy,
    classification_results,
    confusion_matrix,
    macro_f1,
    per_class,
)
from vfm.metrics.intervals import Interval, bootstrap
from vfm.metrics.multilabel import mean_average_precision, multilabel_results
from vfm.metrics.ranking import Ranking, class_rankings

__all__ = [
    "Interval",
    "Ranking",
    "accuracy",
    "bootstrap",
    "class_rankings",
    "classification_results",
    "confusion_matrix",
    "macro_f1",
    "mean_average_precision",
    "multilabel_results",
    "per_class",
]
