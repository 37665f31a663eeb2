"""Labels from the cells of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from vfm_runtime.errors import DataError, OptionError

from vfm.data.class_folders import check_class_names
from vfm.data.tables import Table

_YES = {"1", "1.0", "true", "yes"}
_NO = {"0", "0.0", "false", "no"}
# More rows than this, and no label twice: the column is a list of names, not of labels.
_MOST_UNIQUE = 50


class Labels(NamedTuple):
    """The labels of a table's rows."""

    names: tuple[str, ...]
    of: list[int | tuple[int, ...]]
    """Index into `names` of each row's label, or of all its labels."""
    stratum: list[tuple[int, ...]]
    """All labels of each row, whether one or several."""


def read_labels(
    table: Table, columns: str | Sequence[str], separator: str | None, allow_none: bool
) -> Labels:
    """Read the labels of every row.

    Args:
        table: The table.
        columns: The column of labels, or for each label a column of zeros and ones.
        separator: Between the labels of a cell; None where a cell is one label.
        allow_none: Whether a row may have none of several labels.

    Raises:
        ValueError: A column is missing, a cell is empty or means nothing, or the classes cannot be meant.
    """
    if not isinstance(columns, str):
        return _from_columns(table, columns)
    table.require(columns, "--data.label_column")
    cells = [_split(row[columns], separator) for row in table.rows]
    for index, names in enumerate(cells):
        if not names and not (separator is not None and allow_none):
            remedy = "Fill it in, or delete the row"
            if separator is not None:
                remedy += "; if none of the labels applies, set allow_no_label"
            raise DataError(f"{table.where(index)}: no label in the column '{columns}'. {remedy}.")
    names = sorted({name for found in cells for name in found})
    if not names:
        raise DataError(f"{table.path} has no label in any row of the column '{columns}'.")
    check_class_names(names, table.path)
    _check_repeated(table, columns, cells)
    number = {name: index for index, name in enumerate(names)}
    several = [tuple(sorted({number[name] for name in found})) for found in cells]
    single: list[int | tuple[int, ...]] = (
        [found[0] for found in several] if separator is None else [*several]
    )
    return Labels(tuple(names), single, several)


def _split(cell: str, separator: str | None) -> list[str]:
    if separator is None:
        return [cell] if cell.strip() else []
    return [part.strip() for part in cell.split(separator) if part.strip()]


def _from_columns(table: Table, columns: Sequence[str]) -> Labels:
    if len(columns) < 2 or len(set(columns)) < len(columns):
        raise OptionError(
            f"label_column is {list(columns)}. Give at least two different columns, or the name of one."
        )
    for column in columns:
        table.require(column, "--data.label_column")
    found: list[tuple[int, ...]] = []
    for index, row in enumerate(table.rows):
        found.append(tuple(k for k, c in enumerate(columns) if _applies(table, index, c, row[c])))
    return Labels(tuple(columns), [*found], found)


def _applies(table: Table, index: int, column: str, cell: str) -> bool:
    text = cell.strip().lower()
    if text in _YES or text in _NO:
        return text in _YES
    raise DataError(
        f"{table.where(index)}: '{cell}' in the column '{column}' is neither 0 nor 1 (true/false, yes/no). "
        "Fill it in, or take the column out of label_column."
    )


def _check_repeated(table: Table, column: str, cells: Sequence[Sequence[str]]) -> None:
    counts = Counter(name for names in cells for name in names)
    if len(cells) > _MOST_UNIQUE and max(counts.values()) == 1:
        raise DataError(
            f"Every one of the {len(cells)} rows of {table.path} has another label in the column '{column}', such as "
            f"'{cells[0][0]}'. It looks like a column of names; give the column of classes to --data.label_column."
        )
