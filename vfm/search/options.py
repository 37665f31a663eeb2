"""Options that all commands of a store have: the store and its filter, a column, and the table of results to write."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vfm_runtime.errors import OptionError, suggest

from vfm.embed.store import RESERVED, EmbeddingStore
from vfm.search.filters import parse_filter


def open_filtered(uri: str, where: str | None) -> tuple[EmbeddingStore, str | None, list[str]]:
    """Open a store, and return with it the store's expression of a filter and the columns that images came with.

    Args:
        uri: Folder or address of the store.
        where: Filter as the user wrote it; None for all rows.

    Raises:
        StoreError: There is no such store.
        FilterError: The filter is none.
    """
    store = EmbeddingStore.open(uri)
    expression = None if where is None else parse_filter(where, store.columns)
    return store, expression, [name for name in store.columns if name not in RESERVED]


def require_column(option: str, name: str | None, store: str, columns: Sequence[str]) -> None:
    """Refuse the name of a column that a store does not have, given by an option, with an OptionError."""
    if name is not None and name not in columns:
        raise OptionError(
            f"{option} is '{name}', which is no column of {store}.{suggest(name, columns)} "
            f"Columns: {', '.join(columns) or 'none'}."
        )


def check_table(path: Path | None, option: str = "--export") -> None:
    """Refuse a table of results, given by an option, that is no .csv file, with an OptionError."""
    if path is not None and path.suffix != ".csv":
        raise OptionError(f"{option} is {path}. Give a .csv file, or take --json true for JSON.")


def write_table(file: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the named columns to a .csv file."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, names)
        writer.writeheader()
        writer.writerows(rows)
