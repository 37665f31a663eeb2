"""Labels from the cells of a table."""

from collections import Counter
from collections.abc import Sequence

from vfm_runtime.errors import DataError

from vfm.data.class_folders import check_class_names
from vfm.data.tables import Table

_YES = {"1", "1.0", "true", "yes"}
_NO = {"0", "0.0", "false", "no"}
# More rows than this, and no label twice: the column is a list of names, not of labels.
_MOST_UNIQUE = 50


TableLabels = tuple[tuple[str, ...], list[tuple[int, ...]]]
"""The label names of a table, and the labels of each row as indices into them: always one where rows have one label."""


def read_labels(
    table: Table, columns: str | Sequence[str], separator: str | None, allow_none: bool
) -> TableLabels:
    """Read the labels of every row.

    Args:
        table: Table with a row for each image.
        columns: The column of labels, or for each label a column of zeros and ones.
        separator: Text between the labels of a cell; None where a cell is one label.
        allow_none: Whether a row may have none of several labels.

    Raises:
        ValueError: A column is missing, a cell is empty or means nothing, or the classes cannot be meant.
    """
    if not isinstance(columns, str):
        return _read_flags(table, columns)
    table.require(columns, "--data.label_column")
    cells = [_split(row[columns], separator) for row in table.rows]
    for index, names in enumerate(cells):
        if not names and not (separator is not None and allow_none):
            remedy = "Fill it in, or delete the row"
            if separator is not None:
                remedy += "; if none of the labels applies, set allow_no_label"
            raise DataError(f"{table.where(index)}: no label in the column '{columns}'. {remedy}.")
    counts = Counter(name for names in cells for name in names)
    if not counts:
        raise DataError(f"{table.path} has no label in any row of the column '{columns}'.")
    check_class_names(counts, table.path)
    if len(cells) > _MOST_UNIQUE and max(counts.values()) == 1:
        raise DataError(
            f"Every one of the {len(cells)} rows of {table.path} has another label in the column '{columns}', such as "
            f"'{cells[0][0]}'. It looks like a column of names; give the column of classes to --data.label_column."
        )
    numbers = {name: number for number, name in enumerate(sorted(counts))}
    return tuple(numbers), [tuple(sorted({numbers[name] for name in names})) for names in cells]


def _split(cell: str, separator: str | None) -> list[str]:
    if separator is None:
        return [cell] if cell.strip() else []
    return [part.strip() for part in cell.split(separator) if part.strip()]


def _read_flags(table: Table, columns: Sequence[str]) -> TableLabels:
    if len(columns) < 2 or len(set(columns)) < len(columns):
        raise DataError(
            f"label_column is {list(columns)}. Give at least two different columns, or the name of one."
        )
    for column in columns:
        table.require(column, "--data.label_column")
    labels = []
    for index, row in enumerate(table.rows):
        flags = [row[column].strip().lower() for column in columns]
        for column, flag in zip(columns, flags, strict=True):
            if flag not in _YES | _NO:
                raise DataError(
                    f"{table.where(index)}: '{row[column]}' in the column '{column}' is neither 0 nor 1 (true/false, "
                    "yes/no). Fill it in, or take the column out of label_column."
                )
        labels.append(tuple(number for number, flag in enumerate(flags) if flag in _YES))
    return tuple(columns), labels
