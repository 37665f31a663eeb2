"""ROC and precision-recall curves of several classes, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from vfm_runtime.errors import DataError

from vfm.report.plots import (
    COLORS,
    FONT_SIZE,
    STYLES,
    encode_png,
    make_figure,
    style_axes,
    truncate_text,
)

_MOST_LINES = 10

Points = Sequence[tuple[float, float]]


class Curve(NamedTuple):
    """One class's curves, with the areas under them."""

    roc: Points
    """(false positive rate, true positive rate)."""
    pr: Points
    """(recall, precision)."""
    auroc: float
    average_precision: float


def plot_curves(classes: Mapping[str, Curve]) -> bytes:
    """ROC and precision-recall curves side by side, a class in the same colour in both.

    Of more than ten classes the five of best and the five of worst average precision are drawn, and
    the title says so.

    Args:
        classes: The curves by name.
    """
    if not classes:
        raise DataError("There is no curve to draw. Pass those of at least one class.")
    shown = _chosen(classes)
    # As in the confusion matrix: "constrained" leaves a gap around square panels.
    height = 4.9 + 0.17 * ((len(shown) + 1) // 2) + 0.25 * (len(shown) < len(classes))
    drawing = make_figure(9.4, height, layout="compressed")
    left, right = drawing.subplots(1, 2)
    if len(shown) < len(classes):
        text = f"the best and the worst five of {len(classes)} classes, by average precision"
        drawing.suptitle(text, fontsize=FONT_SIZE)
    _frame(left, "false positive rate", "true positive rate")
    left.plot([0, 1], [0, 1], color="#9aa3ad", linewidth=0.8, linestyle=":")
    _frame(right, "recall", "precision")
    for number, curve in enumerate(shown.values()):
        style: dict[str, Any] = {
            "color": COLORS[number % len(COLORS)],
            "linestyle": STYLES[number // len(COLORS) % len(STYLES)],
            "linewidth": 1.5,
        }
        left.plot(*zip(*curve.roc, strict=True), **style)
        # In steps, whose area is the average precision: it does not interpolate.
        right.plot(*zip(*curve.pr, strict=True), drawstyle="steps-pre", **style)
    areas = {name: curve.auroc for name, curve in shown.items()}
    precisions = {name: curve.average_precision for name, curve in shown.items()}
    _legend(left, "class, area", areas)
    _legend(right, "class, average precision", precisions)
    return encode_png(drawing)


def _chosen(classes: Mapping[str, Curve]) -> dict[str, Curve]:
    if len(classes) <= _MOST_LINES:
        return dict(classes)
    ranked = sorted(classes, key=lambda name: -classes[name].average_precision)
    half = _MOST_LINES // 2
    return {name: classes[name] for name in ranked[:half] + ranked[-half:]}


def _frame(axes: Axes, xlabel: str, ylabel: str) -> None:
    style_axes(axes)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.set_xlabel(xlabel, fontsize=FONT_SIZE)
    axes.set_ylabel(ylabel, fontsize=FONT_SIZE)


def _legend(axes: Axes, title: str, values: Mapping[str, float]) -> None:
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
    # Named afterwards: matplotlib drops names that start with an underscore.
    for text, (name, value) in zip(legend.get_texts(), values.items(), strict=True):
        text.set_parse_math(False)
        text.set_text(f"{truncate_text(name, 18)}  {value:.3f}")
