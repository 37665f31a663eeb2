"""ROC and precision-recall curves of several classes, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from matplotlib.axes import Axes

from vfm.report.plots import COLOURS, FONT_SIZE, STYLES, figure, png, shortened, tidy

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


def curves(classes: Mapping[str, Curve]) -> bytes:
    """ROC and precision-recall curves side by side, a class in the same colour in both.

    Of more than ten classes the five of best and the five of worst average precision are drawn, and
    the title says so.

    Args:
        classes: The curves by name.
    """
    if not classes:
        raise ValueError("There is no curve to draw. Pass those of at least one class.")
    shown = _chosen(classes)
    drawing = figure(9.4, 4.9 if len(shown) == len(classes) else 5.1)
    left, right = drawing.subplots(1, 2)
    if len(shown) < len(classes):
        text = f"the best and the worst five of {len(classes)} classes, by average precision"
        drawing.suptitle(text, fontsize=FONT_SIZE)
    _frame(left, "false positive rate", "true positive rate")
    left.plot([0, 1], [0, 1], color="#9aa3ad", linewidth=0.8, linestyle=":")
    _frame(right, "recall", "precision")
    for number, (name, curve) in enumerate(shown.items()):
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": STYLES[number // len(COLOURS) % len(STYLES)],
            "linewidth": 1.5,
        }
        label = shortened(name, 18)
        _line(left, curve.roc, f"{label}  {curve.auroc:.3f}", style)
        _line(right, curve.pr, f"{label}  {curve.average_precision:.3f}", style)
    _legend(left, "class, area", "lower right")
    _legend(right, "class, average precision", "lower left")
    return png(drawing)


def _chosen(classes: Mapping[str, Curve]) -> dict[str, Curve]:
    if len(classes) <= _MOST_LINES:
        return dict(classes)
    ranked = sorted(classes, key=lambda name: -classes[name].average_precision)
    half = _MOST_LINES // 2
    return {name: classes[name] for name in ranked[:half] + ranked[-half:]}


def _frame(axes: Axes, xlabel: str, ylabel: str) -> None:
    tidy(axes)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.set_xlabel(xlabel, fontsize=FONT_SIZE)
    axes.set_ylabel(ylabel, fontsize=FONT_SIZE)


def _line(axes: Axes, points: Points, label: str, style: dict[str, object]) -> None:
    x, y = zip(*points, strict=True)
    axes.plot(x, y, label=label, **style)  # type: ignore[arg-type]


def _legend(axes: Axes, title: str, place: Literal["lower left", "lower right"]) -> None:
    legend = axes.legend(
        title=title,
        loc=place,
        fontsize=FONT_SIZE - 2,
        title_fontsize=FONT_SIZE - 2,
        framealpha=0.85,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
