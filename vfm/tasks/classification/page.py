"""Results page of a split of labelled images: metrics, curves, confusion matrix, groups, the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.media.bit_depth import ValueRange

from vfm.metrics import rank_classes
from vfm.report import Curve, plot_curves, plots
from vfm.tasks.classification.mistakes import Mistake
from vfm.tasks.results import ResultsPage, describe_metric, make_sheet, open_record

_NUM_SHOWN = 24
_FACTS = {
    "accuracy": "Accuracy",
    "mAP": "Mean average precision",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "top5_accuracy": "Top-5 accuracy",
    "auroc": "AUROC",
    "exact_match": "All labels right",
}


def write_page(
    folder: Path,
    split: str,
    results: dict[str, Any],
    scores: NDArray[np.float32],
    target: NDArray[Any],
    labels: Sequence[str],
    mistakes: Sequence[Mistake],
    value_range: ValueRange | None = None,
) -> None:
    """Write `report_<split>.html` and the PNG files of its pictures.

    The scores are [N, C]; the target is int [N], or float [N, C] where several labels may apply. The range is that of
    images of more than 8 bits.
    """
    checkpoint = results["checkpoint"] or "no checkpoint"
    page = ResultsPage(folder, split, f"{results['num_samples']} images; {checkpoint}")
    page.add_facts(
        {name: describe_metric(results[key]) for key, name in _FACTS.items() if key in results}
    )
    page.add_heading("By class")
    page.add_table(results["per_class"])
    if picture := _draw_curves(scores, target, results["per_class"]):
        page.show("curves", picture, "Each class against all others.")
    if "confusion_matrix" in results:
        matrix = plots.plot_confusion_matrix(np.asarray(results["confusion_matrix"]), list(labels))
        page.show("confusion_matrix", matrix, "True and predicted class.")
    for column, rows in results["groups"].items():
        page.add_heading(f"By {column}")
        page.add_table([_split_interval(row) for row in rows])
    page.add_heading("Most confident mistakes")
    pictures = (
        (
            partial(open_record, mistake.record, value_range),
            f"{mistake.answer} ({mistake.score:.2f})\ntrue: {mistake.truth}\n{mistake.record.name}",
        )
        for mistake in mistakes
    )
    if sheet := make_sheet(pictures, _NUM_SHOWN):
        caption = f"The first of {len(mistakes)}, all listed in mistakes_{split}.csv."
        page.show("mistakes", sheet, caption)
    else:
        page.add_text("None.")
    page.finish(results)


def _split_interval(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a table in which a metric's interval has columns of its own."""
    metric = row.get("accuracy")
    if metric is None:
        return row
    return row | {"accuracy": metric["value"], "low": metric["low"], "high": metric["high"]}


def _draw_curves(
    scores: NDArray[np.float32], target: NDArray[Any], rows: Sequence[dict[str, Any]]
) -> bytes | None:
    positive = target > 0.5 if target.ndim == 2 else target[:, None] == np.arange(scores.shape[1])
    drawn = {
        row["label"]: Curve(
            ranking.roc_curve(), ranking.pr_curve(), row["auroc"], row["average_precision"]
        )
        for row, ranking in zip(rows, rank_classes(scores, positive), strict=True)
        # Without images of the class, or without others, there is no curve.
        if row["auroc"] is not None
    }
    return plot_curves(drawn) if drawn else None
