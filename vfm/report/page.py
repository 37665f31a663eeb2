"""An HTML page in one file: no network, no script, light or dark as the reader prefers."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

_MISSING = "–"  # noqa: RUF001  (an en dash is meant)
# Pixels an inch has in CSS; a plot with more of them is drawn finer, not larger.
_CSS_DPI = 96


class Page:
    """An HTML page built from top to bottom; every text is escaped.

    Args:
        title: Heading of the page and of the browser tab.
        subtitle: A line under the title, such as the date and the command.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._subtitle = subtitle
        self._blocks: list[dict[str, Any]] = []

    def add_heading(self, text: str) -> None:
        """Open a section."""
        self._blocks.append({"kind": "heading", "text": text})

    def add_text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._blocks.append({"kind": "text", "text": paragraph})

    def add_code(self, text: str) -> None:
        """Add preformatted text, such as a command or a configuration."""
        self._blocks.append({"kind": "code", "text": text})

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Add headline figures, each on a card: a value by name; a pair `(value, note)` puts the note below it."""
        cards = []
        for name, entry in facts.items():
            value, note = entry if isinstance(entry, tuple) else (entry, "")
            cards.append((name, *_format_column([value]), note))
        self._blocks.append({"kind": "facts", "facts": cards})

    def add_table(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
    ) -> None:
        """Add a table; columns of numbers are aligned, missing values show as a dash.

        Args:
            rows: A value for each column name. Names may be missing.
            columns: Names of the columns to show, in order. By default all that occur.
        """
        names = columns or list(dict.fromkeys(name for row in rows for name in row))
        texts, headers = [], []
        for name in names:
            values = [row.get(name) for row in rows]
            present = [value for value in values if value is not None]
            headers.append((name, bool(present) and all(map(_is_number, present))))
            texts.append(_format_column(values))
        # Without a column there are still as many rows.
        cells = [[column[i] for column in texts] for i in range(len(rows))]
        self._blocks.append({"kind": "table", "columns": headers, "rows": cells})

    def add_figure(self, png_bytes: bytes, caption: str) -> None:
        """Add a picture, embedded in the page and shown at its physical size.

        Args:
            png_bytes: A PNG file, such as `vfm.report.plots` returns.
            caption: Text below the picture, also read to those who cannot see it.
        """
        with Image.open(io.BytesIO(png_bytes), formats=["PNG"]) as image:
            dots_per_inch = float(image.info.get("dpi", (_CSS_DPI, _CSS_DPI))[0])
            width = max(1, round(image.width * _CSS_DPI / dots_per_inch))
        data = base64.b64encode(png_bytes).decode("ascii")
        self._blocks.append({"kind": "figure", "data": data, "width": width, "caption": caption})

    def to_html(self) -> str:
        """Return the whole page as one HTML document."""
        return render_template(
            "page.html", title=self._title, subtitle=self._subtitle, blocks=self._blocks
        )

    def write(self, path: str | Path) -> None:
        """Write the page to a file, making its folder if needed."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.to_html(), encoding="utf-8")


def render_template(name: str, **values: Any) -> str:
    """Return a template of this package filled with values, in each of which HTML is escaped."""
    loader = jinja2.PackageLoader("vfm.report", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(name).render(**values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _format_column(values: Sequence[Any]) -> list[str]:
    """Write the values of a column, with as many decimals for all of them: three significant digits of the largest."""
    sizes = [abs(float(v)) for v in values if _is_number(v) and v and math.isfinite(v)]
    spec = ".3f"
    if sizes and (min(sizes) < 1e-3 or max(sizes) >= 1e6):
        spec = ".4g"
    elif sizes:
        spec = f".{max(0, 3 - max(0, math.floor(math.log10(max(sizes)))))}f"
    return [_format_cell(value, spec) for value in values]


def _format_cell(value: Any, spec: str) -> str:
    if value is None:
        return _MISSING
    if not _is_number(value):
        return str(value)
    if isinstance(value, int | np.integer):
        # Four digits stay whole: they are often years or sizes in pixels.
        return f"{int(value):,}" if abs(int(value)) >= 10_000 else str(int(value))
    return format(float(value), spec)
