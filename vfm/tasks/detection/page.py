"""The page of a split's boxes: figures, curves, confusions, and the best and worst pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.media.image import ImageError
from vfm_runtime.tasks.detection import compute_iou

from vfm.data.dataset import Record
from vfm.data.detection.dataset import load_pixels
from vfm.metrics.detection import IOU, Found, Truth, assign
from vfm.report import Page, contact_sheet, plots
from vfm.report.drawing import Marked, marked_picture

_FACTS = {
    "AP": "AP (IoU 0.50 to 0.95)",
    "AP50": "AP50",
    "AP75": "AP75",
    "AP_small": "AP, small",
    "AP_medium": "AP, medium",
    "AP_large": "AP, large",
    "AR_100": "AR, 100 boxes",
}
_NUM_SHOWN = 12
_CELL = 290
_MOST_CURVES = 10


def write_box_page(
    folder: Path,
    split: str,
    results: dict[str, Any],
    records: Sequence[Record],
    truth: Sequence[Truth],
    found: Sequence[Found],
    labels: Sequence[str],
) -> None:
    """Write `report_<split>.html` and the PNG files of its figures.

    Args:
        folder: Where to.
        split: `val` or `test`.
        results: Figures of the split, as in `results.json`.
        records: The images.
        truth: Of each image.
        found: Of each image.
        labels: Names of the classes.
    """
    page = Page(
        f"Results on {split}",
        f"{results['num_samples']} images, {results['num_boxes']} boxes; {results['checkpoint'] or 'no checkpoint'}",
    )
    page.facts({name: _fact(results[key]) for key, name in _FACTS.items()})

    def show(name: str, picture: bytes, caption: str) -> None:
        (folder / f"{name}_{split}.png").write_bytes(picture)
        page.figure(picture, caption)

    page.heading("By class")
    page.table(results["per_class"])
    drawn = plots.learning_curve(_few(results), xlabel="recall", ylabel="precision")
    show(
        "curves",
        drawn,
        f"Precision and recall at an IoU of {IOU}; of many classes the best and worst five.",
    )
    matrix = np.asarray(results["confusion_matrix"])
    show(
        "confusion_matrix",
        plots.confusion_matrix(matrix, [*labels, "background"]),
        "True and answered class, at the thresholds of the table: what lies in the last row was found where nothing "
        "is, what lies in the last column was missed.",
    )
    thresholds = np.array([row["best_threshold"] for row in results["per_class"]])
    _show_pictures(page, show, records, truth, found, labels, thresholds)
    if results["num_skipped"]:
        page.heading("Files that could not be read")
        page.table([{"file": name, "reason": why} for name, why in results["skipped"].items()])
    page.write(folder / f"report_{split}.html")


def _few(results: dict[str, Any]) -> dict[str, Any]:
    ranked = sorted(results["per_class"], key=lambda row: -(row["AP"] or 0.0))
    chosen = ranked if len(ranked) <= _MOST_CURVES else ranked[:5] + ranked[-5:]
    return {row["label"]: results["curves"][row["label"]] for row in chosen}


def _show_pictures(
    page: Page,
    show: Any,
    records: Sequence[Record],
    truth: Sequence[Truth],
    found: Sequence[Found],
    labels: Sequence[str],
    thresholds: NDArray[np.float64],
) -> None:
    rows = [
        (_marked(true, answer, labels, thresholds), record)
        for true, answer, record in zip(truth, found, records, strict=True)
        if len(true.labels) or (answer.scores >= thresholds[answer.labels]).any()
    ]
    # By F1 of the image; among equals the one with more boxes tells more.
    rows.sort(key=lambda row: (-_f1(row[0]), -len(row[0].found)))
    parts = {"best": rows[:_NUM_SHOWN], "worst": rows[::-1][:_NUM_SHOWN]}
    for name, chosen in parts.items():
        page.heading(f"{name.capitalize()} images")
        if picture := _sheet(chosen):
            show(name, picture, "Green: found. Amber: missed. Red: answered, but not there.")


def _marked(
    true: Truth, answer: Found, labels: Sequence[str], thresholds: NDArray[np.float64]
) -> Marked:
    kept = answer.scores >= thresholds[answer.labels]
    corners, classes, scores = (part[kept] for part in answer)
    table = compute_iou(corners, true.corners) * (classes[:, None] == true.labels[None])
    matched = assign(table, true.ignored, IOU)
    hit = np.isin(np.arange(len(true.labels)), matched)
    wrong = matched == -1
    captions = [f"{labels[k]} {s:.2f}" for k, s in zip(classes[wrong], scores[wrong], strict=True)]
    return Marked(true.corners[hit], true.corners[~hit & ~true.ignored], corners[wrong], captions)


def _f1(marked: Marked) -> float:
    hits, others = 2 * len(marked.found), len(marked.missed) + len(marked.wrong)
    return hits / max(hits + others, 1)


def _sheet(rows: Sequence[tuple[Marked, Record]]) -> bytes | None:
    images, captions = [], []
    for marked, record in rows:
        try:
            images.append(marked_picture(load_pixels(record), marked, _CELL))
        except ImageError:
            continue  # read once already; gone or changed since
        counts = (
            f"{len(marked.found)} found, {len(marked.missed)} missed, {len(marked.wrong)} wrong"
        )
        captions.append(f"{record.name}\n{counts}")
    return contact_sheet(images, captions, columns=4, cell=_CELL) if images else None


def _fact(figure: Any) -> tuple[str, str]:
    if isinstance(figure, dict):
        low, high = figure["low"], figure["high"]
        note = "" if low is None else f"95 % interval {low:.4f} to {high:.4f}"
        return _number(figure["value"]), note
    return _number(figure), ""


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
