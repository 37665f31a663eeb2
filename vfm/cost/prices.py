"""Prices, peak speeds and carbon intensities: rows with source and date, the user's own file before the package's."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from vfm_runtime.errors import OptionError, suggest

_FILE = Path(__file__).with_name("prices.yaml")
_NUMBERS = {
    "devices": {"usd_per_hour", "tflops", "memory_gb", "watts"},
    "grids": {"g_co2_per_kwh"},
    "apis": {"usd_per_1000_images"},
}
"""Numbers that a row of each section may state; all are 0 or more."""
HERE = "here"
"""Device that stands for this machine, whose steps are measured rather than computed."""

Row = Mapping[str, Any]


class PriceTable:
    """Rows by section and name; each has a source, a date, and the numbers that it states."""

    def __init__(self, sections: Mapping[str, Mapping[str, Row]]) -> None:
        """Keep the rows of the sections `devices`, `grids` and `apis`."""
        self.sections = sections

    @classmethod
    def read(cls, custom: Path | None = None) -> PriceTable:
        """Read the package's table, and a file of the user's whose numbers go before it.

        Raises:
            OptionError: The file is no such table, or a row lacks its source or date.
        """
        table: dict[str, dict[str, Row]] = {name: {} for name in _NUMBERS}
        table["devices"][HERE] = {}
        for path in filter(None, (_FILE, custom)):
            for section, rows in _read_sections(path).items():
                for name, row in rows.items():
                    _check_row(path, section, name, row)
                    table[section][name] = {**table[section].get(name, {}), **row}
        return cls(table)

    def find(self, section: str, name: str) -> Row:
        """Return a row.

        Raises:
            OptionError: There is none of that name; the choices are listed.
        """
        rows = self.sections[section]
        if name not in rows:
            raise OptionError(
                f"The price table has no {section.removesuffix('s')} '{name}'.{suggest(name, list(rows))} Choices: "
                f"{', '.join(rows)}. Add it to a file of your own, with source and date: --prices mine.yaml."
            )
        return rows[name]


def _read_sections(path: Path) -> Mapping[str, Mapping[str, Row]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionError(
            f"The price table {path} cannot be read: {error}. Give a YAML file such as {_FILE}."
        ) from error
    is_table = isinstance(content, dict) and all(isinstance(r, dict) for r in content.values())
    if not is_table or content.keys() - _NUMBERS.keys():
        raise OptionError(
            f"The price table {path} has no rows by name under {', '.join(_NUMBERS)}, and nothing else. {_FILE} is an "
            "example."
        )
    return dict(content)


def _check_row(path: Path, section: str, name: str, row: Any) -> None:
    allowed = _NUMBERS[section]
    numbers = {k: v for k, v in row.items() if k in allowed} if isinstance(row, dict) else {}
    wrong = [k for k, v in numbers.items() if not isinstance(v, int | float) or v < 0]
    if not numbers or wrong or row.keys() - allowed - {"source", "date"}:
        raise OptionError(
            f"{path}: {section}.{name} is {row}. Give numbers of 0 or more for some of "
            f"{', '.join(sorted(allowed))}, and source and date."
        )
    if not row.get("source") or not isinstance(row.get("date"), datetime.date):
        raise OptionError(
            f"{path}: {section}.{name} has no source or no date. Say where the figure comes from and of when it is: "
            "source: our contract, date: 2026-11-01."
        )


def describe_source(name: str, row: Row) -> str:
    """Return a row's name with its source and date, for whoever reads a figure that was computed with it."""
    return f"{name} ({row['source']}, {row['date']})" if "source" in row else name
