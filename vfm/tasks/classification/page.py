"""The page of a split's results, with its pictures as files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.media.image import ImageError, open_image

from vfm.data.dataset import read_source
from vfm.metrics import class_rankings
from vfm.report import Curve, Page, contact_sheet, curves, plots
from vfm.tasks.classification.mistakes import Mistake

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


def write_pages(
    folder: Path,
    split: str,
    results: dict[str, Any],
    scores: NDArray[np.float32],
    target: NDArray[Any],
    labels: Sequence[str],
    mistakes: Sequence[Mistake],
) -> None:
    """Write `report_<split>.html` and the PNG files of its figures.

    Args:
        folder: Where to.
        split: `val` or `test`.
        results: Figures of the split, as in `results.json`.
        scores: [N, C].
        target: int [N], or float [N, C].
        labels: Label names.
        mistakes: The most confident first.
    """
    page = Page(
        f"Results on {split}",
        f"{results['num_samples']} images; {results['checkpoint'] or 'no checkpoint'}",
    )
    page.facts({name: _fact(results[key]) for key, name in _FACTS.items() if key in results})

    def show(name: str, picture: bytes, caption: str) -> None:
        (folder / f"{name}_{split}.png").write_bytes(picture)
        page.figure(picture, caption)

    page.heading("By class")
    page.table(results["per_class"])
    if picture := _curves(scores, target, results["per_class"]):
        show("curves", picture, "Each class against all others.")
    if "confusion_matrix" in results:
        matrix = np.asarray(results["confusion_matrix"])
        show(
            "confusion_matrix",
            plots.confusion_matrix(matrix, list(labels)),
            "True and predicted class.",
        )
    for column, rows in results["groups"].items():
        page.heading(f"By {column}")
        page.table([row | _flat(row) for row in rows])
    page.heading("Most confident mistakes")
    picture = _sheet(mistakes)
    if picture is None:
        page.text("None.")
    else:
        show(
            "mistakes",
            picture,
            f"The first of {len(mistakes)}, all listed in mistakes_{split}.csv.",
        )
    if results["num_skipped"]:
        page.heading("Files that could not be read")
        page.table(
            [{"file": name, "reason": reason} for name, reason in results["skipped"].items()]
        )
    page.write(folder / f"report_{split}.html")


def _fact(figure: dict[str, Any]) -> tuple[str, str]:
    value, low, high = figure["value"], figure["low"], figure["high"]
    note = "" if low is None else f"95 % interval {low:.4f} to {high:.4f}"
    return "not defined" if value is None else f"{value:.4f}", note


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose figure with an interval is spread over columns."""
    figure = row.get("accuracy")
    if figure is None:
        return {}
    return {"accuracy": figure["value"], "low": figure["low"], "high": figure["high"]}


def _curves(
    scores: NDArray[np.float32], target: NDArray[Any], rows: Sequence[dict[str, Any]]
) -> bytes | None:
    positive = target > 0.5 if target.ndim == 2 else target[:, None] == np.arange(scores.shape[1])
    drawn = {
        row["label"]: Curve(
            ranking.roc_curve(), ranking.pr_curve(), row["auroc"], row["average_precision"]
        )
        for row, ranking in zip(rows, class_rankings(scores, positive), strict=True)
        # Without images of the class, or without others, there is no curve.
        if row["auroc"] is not None
    }
    return curves(drawn) if drawn else None


def _sheet(mistakes: Sequence[Mistake]) -> bytes | None:
    images: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    for mistake in mistakes:
        if len(images) == _NUM_SHOWN:
            break
        try:
            images.append(open_image(read_source(mistake.record)))
        except ImageError:
            continue  # read once already; gone or changed since, and listed in the table all the same
        captions.append(
            f"{mistake.answer} ({mistake.score:.2f})\ntrue: {mistake.truth}\n{mistake.record.name}"
        )
    return contact_sheet(images, captions) if images else None
