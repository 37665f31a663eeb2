"""Results page of a split of images with boxes: metrics, curves, confusions, the best and worst pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.detection import compute_iou

from vfm.data.detection.dataset import load_pixels
from vfm.data.records import Record
from vfm.metrics.detection import IOU, DetectedBoxes, TrueBoxes, assign_boxes
from vfm.report import plots
from vfm.report.drawing import Marked, draw_marked_boxes
from vfm.tasks.results import ResultsPage, describe_metric, make_sheet

_FACTS = {
    "AP": "AP (IoU 0.50 to 0.95)",
    "AP50": "AP50",
    "AP75": "AP75",
    "AP_small": "AP, small",
    "AP_medium": "AP, medium",
    "AP_large": "AP, large",
    "AR_100": "AR, {max_boxes} boxes",
}
_NUM_SHOWN = 12
_CELL = 290
_MOST_CURVES = 10


def write_box_page(
    folder: Path,
    split: str,
    results: dict[str, Any],
    records: Sequence[Record],
    truth: Sequence[TrueBoxes],
    detections: Sequence[DetectedBoxes],
    labels: Sequence[str],
    open_picture: Callable[[Record], NDArray[np.uint8]] = load_pixels,
) -> None:
    """Write `report_<split>.html` and the PNG files of its pictures."""
    checkpoint = results["checkpoint"] or "no checkpoint"
    counts = f"{results['num_samples']} images, {results['num_boxes']} boxes"
    page = ResultsPage(folder, split, f"{counts}; {checkpoint}")
    facts = {
        name.format_map(results): describe_metric(results[key]) for key, name in _FACTS.items()
    }
    page.add_facts(facts)
    page.add_heading("By class")
    page.add_table(results["per_class"])
    ranked = sorted(results["per_class"], key=lambda row: -(row["AP"] or 0.0))
    chosen = ranked if len(ranked) <= _MOST_CURVES else ranked[:5] + ranked[-5:]
    page.show(
        "curves",
        plots.plot_learning_curves(
            {"precision": {row["label"]: results["curves"][row["label"]] for row in chosen}},
            xlabel="recall",
        ),
        f"Precision and recall at an IoU of {IOU}; of many classes the best and worst five.",
    )
    matrix = np.asarray(results["confusion_matrix"])
    page.show(
        "confusion_matrix",
        plots.plot_confusion_matrix(matrix, [*labels, "background"]),
        "True and answered class, at the thresholds of the table: what lies in the last row was found where nothing "
        "is, what lies in the last column was missed.",
    )
    thresholds = np.array([row["best_threshold"] for row in results["per_class"]])
    _show_pictures(page, records, truth, detections, labels, thresholds, open_picture)
    page.finish(results)


def _show_pictures(
    page: ResultsPage,
    records: Sequence[Record],
    truth: Sequence[TrueBoxes],
    detections: Sequence[DetectedBoxes],
    labels: Sequence[str],
    thresholds: NDArray[np.float64],
    open_picture: Callable[[Record], NDArray[np.uint8]],
) -> None:
    rows = [
        (_mark_boxes(true, boxes, labels, thresholds), record)
        for true, boxes, record in zip(truth, detections, records, strict=True)
        if len(true.labels) or (boxes.scores >= thresholds[boxes.labels]).any()
    ]

    def rank(row: tuple[Marked, Record]) -> tuple[float, int]:
        """Order by F1 of the image; among equals the one with more boxes tells more."""
        marked = row[0]
        hits, others = 2 * len(marked.found), len(marked.missed) + len(marked.wrong)
        return -hits / max(hits + others, 1), -len(marked.found)

    rows.sort(key=rank)
    for name, chosen in {"best": rows[:_NUM_SHOWN], "worst": rows[::-1][:_NUM_SHOWN]}.items():
        page.add_heading(f"{name.capitalize()} images")
        pictures = [
            (
                lambda record=record, m=m: draw_marked_boxes(open_picture(record), m, _CELL),
                f"{record.name}\n{len(m.found)} found, {len(m.missed)} missed, {len(m.wrong)} wrong",
            )
            for m, record in chosen
        ]
        if sheet := make_sheet(pictures, _NUM_SHOWN, columns=4, cell=_CELL):
            page.show(name, sheet, "Green: found. Amber: missed. Red: answered, but not there.")


def _mark_boxes(
    true: TrueBoxes, boxes: DetectedBoxes, labels: Sequence[str], thresholds: NDArray[np.float64]
) -> Marked:
    is_sure = boxes.scores >= thresholds[boxes.labels]
    corners, classes, scores = (values[is_sure] for values in boxes)
    table = compute_iou(corners, true.corners) * (classes[:, None] == true.labels[None])
    matched = assign_boxes(table, true.ignored, IOU)
    hit = np.isin(np.arange(len(true.labels)), matched)
    wrong = matched == -1
    captions = [f"{labels[k]} {s:.2f}" for k, s in zip(classes[wrong], scores[wrong], strict=True)]
    return Marked(true.corners[hit], true.corners[~hit & ~true.ignored], corners[wrong], captions)
