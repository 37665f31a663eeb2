"""Shortcuts section: the result of `find_shortcuts` as words, as a table to print, and as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vfm.data.file_metadata import UNSEEN
from vfm.deepfake.data.record import FAKE, REAL
from vfm.deepfake.shortcuts.search import Shortcuts
from vfm.metrics.separation import SHORTCUT_LIMIT as LIMIT, Separation
from vfm.report import Page
from vfm.report.plots import COLORS, FONT_SIZE, encode_png, make_figure, style_axes, truncate_text

Row = dict[str, Any]

_RED = "#c1121f"
_MOST_PLOTTED = 24

_ABOUT = (
    "Each figure is the area under the ROC curve of a logistic regression that is given nothing but the named "
    "properties of the files, scored on groups of videos and people that it was not fitted on, with a 95 % interval "
    "over these groups. 0.5 is what files of one origin have; above {limit} a model can learn the files in place of "
    "the pictures."
)
_REMEDY = (
    "Bring both classes to one size, format and quality by the same steps (an original that was never re-encoded "
    "beside a fake that was is enough), take clips of equal length, and run it again. Until then no score on these "
    "data shows that forgeries are seen."
)


def explain_shortcuts(result: Shortcuts) -> str:
    """What a result means, in a few sentences."""
    telling = [f for f in result.features if f.group not in UNSEEN and f.separation.level == "red"]
    if result.warning:
        names = ", ".join(feature.title for feature in telling[:5])
        alone = f" Alone: {names}." if names else ""
        area = f", AUC {result.seen.auc:.3f}" if result.seen else ""
        return (
            f"RED WARNING: the files give the labels away without a look at the pictures{area} (limit {LIMIT})."
            f"{alone} {_REMEDY}"
        )
    if result.seen is None:
        return "No shortcut: size, format, compression and length are the same for all files, or too few to tell."
    if result.seen.level == "unclear":
        return (
            f"Unclear: AUC {result.seen.auc:.3f} is above {LIMIT}, but with so few videos it may be chance "
            f"({result.seen.low:.3f} to {result.seen.high:.3f}). Give more videos."
        )
    what = "by size, format, compression and length"
    return f"No shortcut found: {what} the AUC is {result.seen.auc:.3f} (limit {LIMIT})."


def explain_names(result: Shortcuts) -> str:
    """What the names of the files tell; empty where they tell nothing."""
    if result.named is None or result.named.level != "red":
        return ""
    return (
        f"The names of the files give the labels away (AUC {result.named.auc:.3f}). A model that is given pixels does "
        "not see them; make sure that nothing else reads them."
    )


def list_features(result: Shortcuts) -> list[Row]:
    """A row for all features together, and for each alone."""
    rows = [_describe(name, each) for name, each in _list_joint(result).items()]
    for feature in result.features:
        usual = {"usual in real": feature.real, "usual in fake": feature.fake}
        rows.append(_describe(feature.title, feature.separation) | usual)
    return rows


def list_sources(result: Shortcuts) -> list[Row]:
    """Rows of everything but the features: data sets, methods, reals against reals."""
    rows = [_describe(f"{name} against real", each) for name, each in result.methods.items()]
    for name, each in result.reals.items():
        rows.append(_describe(f"reals: {name} against others", each) | {"warning": ""})
    if result.dataset is not None:
        rows.append(_describe("name of the data set", result.dataset))
    return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned lines, the first column to the left."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names]
    for row in rows:
        values = [row.get(name) for name in names]
        cells.append(
            ["" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in values]
        )
    widths = [max(len(line[k]) for line in cells) for k in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def add_shortcuts(page: Page, result: Shortcuts) -> None:
    """Add a result to the page of the doctor."""
    page.add_heading("Shortcuts in the files")
    for text in (explain_shortcuts(result), explain_names(result), *result.notes):
        if text:
            page.add_text(text)
    page.add_text(
        f"{_ABOUT.format(limit=LIMIT)} One file of each video: {result.num_files[REAL]} real, "
        f"{result.num_files[FAKE]} fake."
    )
    rows = list_features(result)
    if rows:
        lines = _list_joint(result) | {f.title: f.separation for f in result.features}
        page.add_figure(
            _plot_intervals(dict(list(lines.items())[:_MOST_PLOTTED])),
            "Area under the ROC curve by metadata, with 95 % intervals",
        )
        page.add_table(rows)
    if sources := list_sources(result):
        page.add_text(
            "Reals of two sources should not be told apart either: where they are, and the classes differ in their "
            "share of each, a model that knows the source knows the label."
        )
        page.add_table(sources)
    if result.failures:
        page.add_text("Not read:")
        page.add_table([failure._asdict() for failure in result.failures[:20]])


def _list_joint(result: Shortcuts) -> dict[str, Separation]:
    joint = {"all but the names": result.seen, "the names": result.named}
    return {name: each for name, each in joint.items() if each is not None}


def _describe(name: str, separation: Separation) -> Row:
    return {
        "metadata": name,
        "AUC": round(separation.auc, 3),
        "95 % interval": f"{separation.low:.3f} to {separation.high:.3f}",
        "warning": {"red": "RED", "unclear": "unclear", "clear": ""}[separation.level],
    }


def _plot_intervals(lines: Mapping[str, Separation]) -> bytes:
    """A dot and its interval for each line, red where it is a warning, the first on top."""
    drawing = make_figure(7.0, 1.0 + 0.27 * len(lines))
    axes = drawing.subplots()
    for limit, style in ((0.5, ":"), (LIMIT, "--")):
        axes.axvline(limit, color="#9aa3ad", linewidth=0.9, linestyle=style)
    for row, each in enumerate(lines.values()):
        color = _RED if each.level == "red" else COLORS[0]
        axes.plot([each.low, each.high], [row, row], color=color, linewidth=1.6)
        axes.plot([each.auc], [row], color=color, marker="o", markersize=5)
    axes.set_yticks(
        range(len(lines)),
        [truncate_text(name, 40) for name in lines],
        fontsize=FONT_SIZE,
        parse_math=False,
    )
    axes.invert_yaxis()
    axes.set_xlim(min(0.4, *(each.low for each in lines.values())) - 0.02, 1.02)
    axes.set_xlabel(f"AUC of real against fake (dashed: the limit {LIMIT})", fontsize=FONT_SIZE)
    style_axes(axes)
    axes.grid(visible=False, axis="y")
    return encode_png(drawing)
