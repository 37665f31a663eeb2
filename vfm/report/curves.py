"""ROC and precision-recall curves of several classes, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.axes import Axes
from vfm_runtime.errors import DataError

from vfm.report.plots import (
    FONT_SIZE,
    Points,
    choose_style,
    encode_png,
    make_figure,
    name_lines,
    style_axes,
    truncate_text,
)

_MOST_LINES = 10


class Curve(NamedTuple):
    """One class's curves, with the areas under them."""

    roc: Points
    """(false positive rate, true positive rate)."""
    pr: Points
    """(recall, precision)."""
    auroc: float
    average_precision: float


def plot_curves(classes: Mapping[str, Curve]) -> bytes:
    """Plot ROC and precision-recall curves by class side by side, a class in the same colour in both.

    Of more than ten classes the five of best and the five of worst average precision are drawn, and the title says so.
    """
    if not classes:
        raise DataError("There is no curve to draw. Pass those of at least one class.")
    shown = dict(classes)
    if len(classes) > _MOST_LINES:
        ranked = sorted(classes, key=lambda name: -classes[name].average_precision)
        half = _MOST_LINES // 2
        shown = {name: classes[name] for name in ranked[:half] + ranked[-half:]}
    # As in the confusion matrix: "constrained" leaves a gap around square panels.
    height = 4.9 + 0.17 * ((len(shown) + 1) // 2) + 0.25 * (len(shown) < len(classes))
    drawing = make_figure(9.4, height, layout="compressed")
    left, right = drawing.subplots(1, 2)
    if len(shown) < len(classes):
        text = f"the best and the worst five of {len(classes)} classes, by average precision"
        drawing.suptitle(text, fontsize=FONT_SIZE)
    _draw_frame(left, "false positive rate", "true positive rate")
    left.plot([0, 1], [0, 1], color="#9aa3ad", linewidth=0.8, linestyle=":")
    _draw_frame(right, "recall", "precision")
    for number, curve in enumerate(shown.values()):
        style = choose_style(number) | {"linewidth": 1.5}
        left.plot(*zip(*curve.roc, strict=True), **style)
        # In steps, whose area is the average precision: it does not interpolate.
        right.plot(*zip(*curve.pr, strict=True), drawstyle="steps-pre", **style)
    _add_legend(left, "class, area", {k: v.auroc for k, v in shown.items()})
    _add_legend(
        right, "class, average precision", {k: v.average_precision for k, v in shown.items()}
    )
    return encode_png(drawing)


def _draw_frame(axes: Axes, xlabel: str, ylabel: str) -> None:
    style_axes(axes)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.set_xlabel(xlabel, fontsize=FONT_SIZE)
    axes.set_ylabel(ylabel, fontsize=FONT_SIZE)


def _add_legend(axes: Axes, title: str, values: Mapping[str, float]) -> None:
    """Name the lines drawn last, each with its value, below the panel: a curve may be anywhere inside."""
    legend = axes.legend(
        axes.lines[-len(values) :],
        ["class"] * len(values),
        title=title,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=2,
        frameon=False,
        fontsize=FONT_SIZE - 2,
        title_fontsize=FONT_SIZE - 2,
    )
    name_lines(
        legend, [f"{truncate_text(name, 18)}  {value:.3f}" for name, value in values.items()]
    )
