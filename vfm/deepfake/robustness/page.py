"""Robustness page: the result of `measure_robustness` as a table to print, and as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from vfm.data.corruptions import CORRUPTIONS
from vfm.deepfake.robustness.results import Robustness, RobustnessPoint
from vfm.deepfake.shortcuts.page import format_table
from vfm.report import Page, draw_contact_sheet
from vfm.report.plots import COLORS, FONT_SIZE, encode_png, make_figure, style_axes

_ABOUT = (
    "Every crop was degraded before it was brought to the model's size. Bands are 95 % intervals, drawn over people "
    "with all that shows them; the dashed line is the figure of the pictures as they are. H.264 saw one crop at a "
    "time, so all its frames are key frames."
)
_THRESHOLD = (
    "FPR and TPR are the shares of real and of fake videos above the threshold of the operating point, which was "
    "fitted on pictures as they are: where the FPR rises, the threshold no longer holds."
)


def format_robustness(result: Robustness) -> str:
    """The printed result."""
    counts = f"{result.num_videos} videos, {result.num_images} images"
    worst = result.worst
    return (
        f"{result.checkpoint} on {result.split} of {result.data}: {counts}\n\n{format_table(_list_rows(result))}\n\n"
        f"Worst: {worst.corruption}, video AUC {worst.auc:.3f} ({result.clean.auc:.3f} as they are)."
    )


def build_robustness_page(
    result: Robustness, examples: Iterable[tuple[str, NDArray[np.uint8]]] = ()
) -> Page:
    """The page of a result, with example pictures and what was done to them."""
    page = Page(
        f"Robustness on {result.split}",
        f"{result.checkpoint}; {result.data}: {result.num_videos} videos, {result.num_images} images; "
        f"seed {result.seed}",
    )
    facts: dict[str, Any] = {
        "Video AUC as they are": (f"{result.clean.auc:.4f}", _format_interval(result.clean))
    }
    for kind, area in result.mean_auc.items():
        facts[f"Mean over {CORRUPTIONS[kind].unit}"] = f"{area:.4f}"
    facts["Worst"] = (f"{result.worst.auc:.4f}", str(result.worst.corruption))
    page.add_facts(facts)
    page.add_heading("By corruption")
    page.add_text(_ABOUT)
    page.add_figure(_plot(result), "Video AUC at each level, from weak to strong")
    if result.clean.fpr is not None:
        page.add_text(_THRESHOLD)
    page.add_table(_list_rows(result))
    shown = list(examples)
    if shown:
        page.add_heading("One fake at every level")
        names, pictures = zip(*shown, strict=True)
        page.add_figure(draw_contact_sheet(pictures, names, cell=150), "As the model sees it")
    return page


def _list_rows(result: Robustness) -> list[dict[str, Any]]:
    rows = []
    for point in [result.clean, *result.points]:
        row: dict[str, Any] = {
            "pictures": "as they are" if point.corruption is None else str(point.corruption),
            "video AUC": point.auc,
            "95 % interval": _format_interval(point),
            "frame AUC": point.frame_auc,
        }
        if point.fpr is not None:
            row |= {"FPR": point.fpr, "TPR": point.tpr}
        rows.append(row)
    return rows


def _format_interval(point: RobustnessPoint) -> str:
    low, high = point.video_auc["low"], point.video_auc["high"]
    return "not defined" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _plot(result: Robustness) -> bytes:
    kinds = result.by_kind
    drawing = make_figure(2.6 * len(kinds) + 0.6, 3.0)
    panels: Sequence[Axes] = drawing.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for number, (axes, (kind, points)) in enumerate(zip(panels, kinds.items(), strict=True)):
        color = COLORS[number % len(COLORS)]
        x = range(len(points))
        axes.plot(x, [point.auc for point in points], color=color, marker="o", markersize=4)
        bands = [(p.video_auc["low"], p.video_auc["high"]) for p in points]
        if all(low is not None and high is not None for low, high in bands):
            low, high = zip(*bands, strict=True)
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_xticks(x, [f"{p.corruption.level:g}" for p in points if p.corruption])
        style_axes(axes)
        axes.axhline(result.clean.auc, color="#5c6670", linewidth=0.9, linestyle="--")
        axes.axhline(0.5, color="#9aa3ad", linewidth=0.9, linestyle=":")
        axes.set_xlabel(CORRUPTIONS[kind].unit, fontsize=FONT_SIZE)
    panels[0].set_ylabel("video AUC", fontsize=FONT_SIZE)
    return encode_png(drawing)
