"""Plots as PNG bytes, through matplotlib's object API: pyplot keeps global state."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator
from vfm_runtime.errors import DataError

Points = Sequence[tuple[float, float]] | Sequence[tuple[float, float, float, float]]
"""`(x, y)`, or `(x, y, low, high)` with an interval."""

# Okabe and Ito's colours, told apart by colour-blind readers; line styles when they run out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DPI = 144
FONT_SIZE = 9
_MAX_CLASSES_WITH_COUNTS = 20
_MAX_CLASSES_WITH_LABELS = 50


def plot_learning_curves(
    panels: Mapping[str, Mapping[str, Points]], *, xlabel: str, log_x: bool = False
) -> bytes:
    """Plot panels of lines side by side, such as loss and accuracy; a name has the same colour in every panel.

    Args:
        panels: For each label of the y axis, points `(x, y)` for each name, or `(x, y, low, high)`, of which the
            interval is drawn as a band; a NaN leaves a gap.
        xlabel: What x is in all panels, with its unit.
        log_x: Whether x, above 0, is on a scale that doubles.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    if not names:
        raise DataError(
            f"There is no series to plot in the panels {list(panels)}. "
            "Pass at least one panel with one series of (x, y) points."
        )
    drawing = make_figure(max(6.0, 4.4 * len(panels)), 3.4)
    # squeeze=False keeps an array for a single panel too.
    columns = drawing.subplots(1, len(panels), squeeze=False)[0]
    for axes, (ylabel, series) in zip(columns, panels.items(), strict=True):
        _draw_series(axes, series, names)
        if log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(LogLocator(base=2))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.set_xlabel(truncate_text(xlabel, 48), fontsize=FONT_SIZE, parse_math=False)
        axes.set_ylabel(truncate_text(ylabel, 32), fontsize=FONT_SIZE, parse_math=False)
    return encode_png(drawing)


def plot_confusion_matrix(
    matrix: npt.ArrayLike, labels: Sequence[str], *, normalize: bool = True
) -> bytes:
    """Plot counts of true class (row) against predicted class (column), coloured.

    Up to 20 classes the counts are written in the cells (zeros are left blank), up to 50 the classes are named; beyond
    that the axis says that names are left out. Without counts the colour scale follows the square root, so that rare
    confusions are seen.

    Args:
        matrix: Counts, int [C, C], rows are the truth.
        labels: Names of the C classes.
        normalize: Colour by the share of the row, between 0 and 1, rather than by count.
    """
    counts = np.asarray(matrix)
    num_classes = len(labels)
    shown = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) if normalize else counts
    side = min(9.5, max(4.5, 1.6 + 0.55 * num_classes))
    # "constrained" pushes the label of the y axis off a figure with square cells.
    drawing = make_figure(side + 0.9, side, layout="compressed")
    axes = drawing.subplots()
    with_counts = num_classes <= _MAX_CLASSES_WITH_COUNTS
    limit = 1.0 if normalize else max(1.0, float(counts.max()))
    norm = PowerNorm(1.0 if with_counts else 0.5, 0, limit)
    image = axes.imshow(shown, cmap="Blues", norm=norm, interpolation="nearest")
    bar = drawing.colorbar(image, ax=axes, aspect=30, pad=0.03)
    bar.set_label("share of the true class" if normalize else "samples", fontsize=FONT_SIZE)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1)
    _name_classes(axes, labels)
    for row, column in np.argwhere(counts) if with_counts else ():
        axes.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=FONT_SIZE if num_classes <= 12 else 7,
            # White where the ground is deep.
            color="white" if shown[row, column] > 0.55 * limit else "#1b1f24",
        )
    return encode_png(drawing)


def plot_bars(values: Mapping[str, float], xlabel: str) -> bytes:
    """Plot horizontal bars of a length for each name, 0 or more, the first on top, each with its value."""
    lengths = [float(value) for value in values.values()]
    drawing = make_figure(7.0, 0.9 + 0.36 * len(lengths))
    axes = drawing.subplots()
    names = [truncate_text(name, 40) for name in values]
    drawn = axes.barh(range(len(lengths)), lengths, color=COLORS[0], height=0.65)
    axes.bar_label(drawn, [f"{value:.4g}" for value in lengths], padding=4, fontsize=FONT_SIZE)
    axes.set_yticks(range(len(lengths)), names, fontsize=FONT_SIZE, parse_math=False)
    axes.invert_yaxis()
    # Room for the value at the end of the longest bar.
    axes.set_xlim(0, 1.12 * max(lengths) or 1.0)
    axes.set_xlabel(truncate_text(xlabel, 48), fontsize=FONT_SIZE, parse_math=False)
    style_axes(axes)
    axes.grid(visible=False, axis="y")
    return encode_png(drawing)


def plot_intervals(
    points: Mapping[str, tuple[float, float, float, float]], *, xlabel: str, ylabel: str
) -> bytes:
    """Plot values with their intervals over x, which is on a logarithmic scale, each named in the legend.

    Those of nearly equal x are drawn side by side.

    Args:
        points: `(x, value, low, high)` for each name, x above 0.
        xlabel: What x is, with its unit.
        ylabel: What the values are.
    """
    if not points:
        raise DataError("There is no interval to plot. Pass at least one point.")
    drawing = make_figure(7.4, 3.8 + 0.2 * len(points), layout="compressed")
    axes = drawing.subplots()
    drawn: list[Any] = []
    before: list[float] = []
    for index, (x, value, low, high) in enumerate(points.values()):
        shift = 1.06 ** sum(0.8 < x / other < 1.25 for other in before)
        before.append(x)
        style: Any = {
            "color": COLORS[index % len(COLORS)],
            "marker": _MARKERS[index % len(_MARKERS)],
        }
        errors = [[max(0.0, value - low)], [max(0.0, high - value)]]
        drawn.append(
            axes.errorbar(
                [shift * x], [value], yerr=errors, capsize=4, linestyle="", elinewidth=1.4, **style
            )
        )
    axes.set_xscale("log")
    axes.set_xlim(min(before) / 1.5, 2 * max(before))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(truncate_text(xlabel, 48), fontsize=FONT_SIZE, parse_math=False)
    axes.set_ylabel(truncate_text(ylabel, 32), fontsize=FONT_SIZE, parse_math=False)
    style_axes(axes)
    legend = axes.legend(
        drawn,
        ["way"] * len(drawn),
        fontsize=FONT_SIZE - 1,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
        ncols=2,
    )
    name_lines(
        legend,
        [f"{truncate_text(name, 44)}  {point[1]:.3f}" for name, point in points.items()],
    )
    return encode_png(drawing)


def choose_style(index: int) -> dict[str, Any]:
    """Return color and style of the line of an index, told apart from those of the others."""
    style = STYLES[index // len(COLORS) % len(STYLES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": style}


def name_lines(legend: Legend, names: Iterable[str]) -> None:
    """Name the lines of a legend afterwards: matplotlib drops names that start with an underscore."""
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _draw_series(axes: Axes, series: Mapping[str, Points], names: Sequence[str]) -> None:
    """Draw lines, coloured by the position of their name in `names`, and a legend."""
    lines = []
    is_whole = True
    for name, points in series.items():
        xy = np.asarray(points if len(points) else np.empty((0, 2)), dtype=np.float64)
        is_whole = is_whole and bool((xy[:, 0] % 1 == 0).all())
        # A single point has no line; many points hide theirs behind the markers.
        marker = "o" if len(xy) <= 30 else ""
        style = choose_style(names.index(name))
        lines += axes.plot(*xy[:, :2].T, linewidth=1.6, marker=marker, markersize=3.5, **style)
        if xy.shape[1] == 4:
            axes.fill_between(xy[:, 0], *xy[:, 2:].T, color=style["color"], alpha=0.15, linewidth=0)
    style_axes(axes)
    if is_whole:
        # Steps and epochs have no halves.
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    if lines:
        legend = axes.legend(lines, ["series"] * len(lines), fontsize=FONT_SIZE, frameon=False)
        name_lines(legend, [truncate_text(name, 40) for name in series])


def _name_classes(axes: Axes, labels: Sequence[str]) -> None:
    """Name rows and columns, or say that there are too many classes for it."""
    note = ""
    if len(labels) <= _MAX_CLASSES_WITH_LABELS:
        size = FONT_SIZE if len(labels) <= _MAX_CLASSES_WITH_COUNTS else 6.5
        names = [truncate_text(label, 24) for label in labels]
        turn = 0 if len(labels) * max(map(len, names)) <= 60 else 90
        ticks = range(len(labels))
        axes.set_xticks(ticks, names, rotation=turn, fontsize=size, parse_math=False)
        axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    else:
        note = f" ({len(labels)} classes: names left out)"
        axes.set_xticks([])
        axes.set_yticks([])
    axes.tick_params(length=0)
    axes.set_xlabel(f"predicted class{note}", fontsize=FONT_SIZE)
    axes.set_ylabel(f"true class{note}", fontsize=FONT_SIZE)


def make_figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> Figure:
    """Return a white figure, size in inches, whose parts make room for each other."""
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes) -> None:
    """Give axes a light grid, and no frame on top and right."""
    axes.grid(visible=True, color="#dde1e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=FONT_SIZE - 1)


def encode_png(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    # Without matplotlib's version the same data gives the same bytes after an upgrade.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def truncate_text(text: str, width: int) -> str:
    """Return the text on one line of at most `width` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"
