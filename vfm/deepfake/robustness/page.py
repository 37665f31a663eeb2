"""The result of `measure_robustness` as a table to print, and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from vfm.deepfake.robustness.degradations import WORDS, Kind
from vfm.deepfake.robustness.results import Point, Robustness, value_of
from vfm.deepfake.shortcuts.page import text_table
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


def text(found: Robustness) -> str:
    """The printed result."""
    head = f"{found.checkpoint} on {found.split} of {found.data}: {found.num_videos} videos, {found.num_images} images"
    worst = found.worst
    end = (
        f"Worst: {worst.degradation}, video AUC {worst.video_auc['value']:.3f} "
        f"({found.clean.video_auc['value']:.3f} as they are)."
    )
    return f"{head}\n\n{text_table(_rows(found))}\n\n{end}"


def robustness_page(
    found: Robustness, examples: Iterable[tuple[str, NDArray[np.uint8]]] = ()
) -> Page:
    """The page.

    Args:
        found: The result.
        examples: Pictures and what was done to them.
    """
    page = Page(
        f"Robustness on {found.split}",
        f"{found.checkpoint}; {found.data}: {found.num_videos} videos, {found.num_images} images; seed {found.seed}",
    )
    clean = found.clean.video_auc
    facts: dict[str, Any] = {
        "Video AUC as they are": (f"{clean['value']:.4f}", _interval(found.clean))
    }
    for kind in found.kinds:
        facts[f"Mean over {WORDS[_kind(kind)]}"] = f"{found.mean_auc(kind):.4f}"
    worst = found.worst
    facts["Worst"] = (f"{worst.video_auc['value']:.4f}", str(worst.degradation))
    page.add_facts(facts)
    page.add_heading("By degradation")
    page.add_text(_ABOUT)
    page.add_figure(_plot(found), "Video AUC at each level, from weak to strong")
    if found.clean.fpr is not None:
        page.add_text(_THRESHOLD)
    page.add_table(_rows(found))
    shown = list(examples)
    if shown:
        page.add_heading("One fake at every level")
        names, pictures = zip(*shown, strict=True)
        page.add_figure(draw_contact_sheet(pictures, names, cell=150), "As the model sees it")
    return page


def _rows(found: Robustness) -> list[dict[str, Any]]:
    rows = []
    for point in [found.clean, *found.points]:
        value = point.video_auc["value"]
        row: dict[str, Any] = {
            "pictures": "as they are" if point.degradation is None else str(point.degradation),
            "video AUC": value,
            "95 % interval": _interval(point),
            "frame AUC": point.frame_auc,
        }
        if point.fpr is not None:
            row |= {"FPR": point.fpr, "TPR": point.tpr}
        rows.append(row)
    return rows


def _interval(point: Point) -> str:
    low, high = point.video_auc["low"], point.video_auc["high"]
    return "not defined" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _kind(name: str) -> Kind:
    return next(kind for kind in WORDS if kind == name)


def _plot(found: Robustness) -> bytes:
    drawing = make_figure(2.6 * len(found.kinds) + 0.6, 3.0)
    panels: Sequence[Axes] = drawing.subplots(1, len(found.kinds), sharey=True, squeeze=False)[0]
    for number, (axes, kind) in enumerate(zip(panels, found.kinds, strict=True)):
        points = [p for p in found.points if p.degradation and p.degradation.kind == kind]
        _draw(axes, points, COLORS[number % len(COLORS)])
        axes.axhline(
            value_of(found.clean.video_auc), color="#5c6670", linewidth=0.9, linestyle="--"
        )
        axes.axhline(0.5, color="#9aa3ad", linewidth=0.9, linestyle=":")
        axes.set_xlabel(WORDS[_kind(kind)], fontsize=FONT_SIZE)
    panels[0].set_ylabel("video AUC", fontsize=FONT_SIZE)
    return encode_png(drawing)


def _draw(axes: Axes, points: Sequence[Point], colour: str) -> None:
    places = range(len(points))
    values = [value_of(point.video_auc) for point in points]
    axes.plot(places, values, color=colour, marker="o", markersize=4)
    bands = [(p.video_auc["low"], p.video_auc["high"]) for p in points]
    if all(low is not None and high is not None for low, high in bands):
        low, high = zip(*bands, strict=True)
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xticks(places, [f"{p.degradation.level:g}" for p in points if p.degradation])
    style_axes(axes)
