"""The result of `find_shortcuts` as words, as a table to print, and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vfm.deepfake.data.record import FAKE, REAL
from vfm.deepfake.results import SHORTCUT_LIMIT as LIMIT
from vfm.deepfake.shortcuts.metadata import UNSEEN
from vfm.deepfake.shortcuts.probe import Separation
from vfm.deepfake.shortcuts.search import Shortcuts
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


def verdict(found: Shortcuts) -> str:
    """What it means, in a few sentences."""
    telling = [f for f in found.features if f.group not in UNSEEN and f.separation.level == "red"]
    if found.warning:
        names = ", ".join(_plain(feature.name) for feature in telling[:5])
        alone = f" Alone: {names}." if names else ""
        area = f", AUC {found.seen.auc:.3f}" if found.seen else ""
        return (
            f"RED WARNING: the files give the labels away without a look at the pictures{area} (limit {LIMIT})."
            f"{alone} {_REMEDY}"
        )
    if found.seen is None:
        return "No shortcut: size, format, compression and length are the same for all files, or too few to tell."
    unclear = found.seen.level == "unclear"
    if unclear:
        return (
            f"Unclear: AUC {found.seen.auc:.3f} is above {LIMIT}, but with so few videos it may be chance "
            f"({found.seen.low:.3f} to {found.seen.high:.3f}). Give more videos."
        )
    what = "by size, format, compression and length"
    return f"No shortcut found: {what} the AUC is {found.seen.auc:.3f} (limit {LIMIT})."


def name_note(found: Shortcuts) -> str:
    """What the names tell; empty where they tell nothing."""
    if found.named is None or found.named.level != "red":
        return ""
    return (
        f"The names of the files give the labels away (AUC {found.named.auc:.3f}). A model that is given pixels does "
        "not see them; make sure that nothing else reads them."
    )


def feature_rows(found: Shortcuts) -> list[Row]:
    """A row for all features together, and for each alone."""
    rows = []
    if found.seen is not None:
        rows.append(_row("all but the names", found.seen))
    if found.named is not None:
        rows.append(_row("the names", found.named))
    for feature in found.features:
        usual = {"usual in real": feature.real, "usual in fake": feature.fake}
        rows.append(_row(_plain(feature.name), feature.separation) | usual)
    return rows


def other_rows(found: Shortcuts) -> list[Row]:
    """Rows of everything but the features: data sets, methods, reals against reals."""
    rows = [_row(f"{name} against real", each) for name, each in found.methods.items()]
    rows += [
        _row(f"reals: {name} against others", each, marked=False)
        for name, each in found.reals.items()
    ]
    if found.dataset is not None:
        rows.append(_row("name of the data set", found.dataset))
    return rows


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned lines, the first column to the left."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def shortcuts_page(found: Shortcuts, where: str) -> Page:
    """The page.

    Args:
        found: The result.
        where: Name of the data, for the subtitle.
    """
    page = Page("Shortcuts in the data", where)
    page.add_facts(
        {
            "AUC by metadata": (
                f"{found.seen.auc:.3f}" if found.seen else "not defined",
                _interval(found.seen) if found.seen else "",
            ),
            "Verdict": "red warning" if found.warning else "no warning",
            "Real": (found.num_files[REAL], "one file of each video"),
            "Fake": (found.num_files[FAKE], "one file of each video"),
        }
    )
    for text in (verdict(found), name_note(found), *found.notes):
        if text:
            page.add_text(text)
    page.add_heading("What tells real from fake")
    page.add_text(_ABOUT.format(limit=LIMIT))
    rows = feature_rows(found)
    if rows:
        page.add_figure(_plot(found), "Area under the ROC curve by metadata, with 95 % intervals")
        page.add_table(rows)
    if others := other_rows(found):
        page.add_heading("Methods, data sets and splits")
        page.add_text(
            "Reals of two sources should not be told apart either: where they are, and the classes differ in their "
            "share of each, a model that knows the source knows the label."
        )
        page.add_table(others)
    if found.failures:
        page.add_heading("Not read")
        page.add_table([failure._asdict() for failure in found.failures[:20]])
    return page


def _row(name: str, found: Separation, *, marked: bool = True) -> Row:
    mark = {"red": "RED", "unclear": "unclear", "clear": ""}[found.level] if marked else ""
    return {
        "metadata": name,
        "AUC": round(found.auc, 3),
        "95 % interval": _interval(found),
        "warning": mark,
    }


def _interval(found: Separation) -> str:
    return f"{found.low:.3f} to {found.high:.3f}"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _plot(found: Shortcuts) -> bytes:
    joint = [("all but the names", found.seen), ("the names", found.named)]
    lines = [(name, each) for name, each in joint if each is not None]
    lines += [(_plain(feature.name), feature.separation) for feature in found.features]
    return interval_plot(lines[:_MOST_PLOTTED], "AUC of real against fake")


def interval_plot(lines: Iterable[tuple[str, Separation]], xlabel: str) -> bytes:
    """A dot and its interval for each line, red where it is a warning, the first on top.

    Args:
        lines: Names and figures.
        xlabel: What the figures are.
    """
    listed = list(lines)
    drawing = make_figure(7.0, 1.0 + 0.27 * len(listed))
    axes = drawing.subplots()
    for limit, style in ((0.5, ":"), (LIMIT, "--")):
        axes.axvline(limit, color="#9aa3ad", linewidth=0.9, linestyle=style)
    for place, (_, each) in enumerate(listed):
        colour = _RED if each.level == "red" else COLORS[0]
        axes.plot([each.low, each.high], [place, place], color=colour, linewidth=1.6)
        axes.plot([each.auc], [place], color=colour, marker="o", markersize=5)
    axes.set_yticks(
        range(len(listed)),
        [truncate_text(name, 40) for name, _ in listed],
        fontsize=FONT_SIZE,
        parse_math=False,
    )
    axes.invert_yaxis()
    axes.set_xlim(min(0.4, *(each.low for _, each in listed)) - 0.02, 1.02)
    axes.set_xlabel(f"{xlabel} (dashed: the limit {LIMIT})", fontsize=FONT_SIZE)
    style_axes(axes)
    axes.grid(visible=False, axis="y")
    return encode_png(drawing)
