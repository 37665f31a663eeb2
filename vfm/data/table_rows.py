"""Rows of a table as images by split, each with its labels, key and groups."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vfm_runtime.errors import DataError
from vfm_runtime.media.image import IMAGE_SUFFIXES

from vfm.data.labelstudio import CHOICE_SEPARATOR
from vfm.data.layouts import Reading, list_files_beside
from vfm.data.records import Record
from vfm.data.table_labels import read_labels
from vfm.data.tables import Table, read_table

SPLIT_COLUMN = "split"
"""Column of splits where no other is named."""
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
"""Suffixes by which a file is known for a table."""


class TableRow(NamedTuple):
    """A row of a table of images."""

    position: int
    """Position in the table, from 0."""
    cells: dict[str, str]
    """Text by column."""
    key: str
    """Rows of one key go to one split."""
    record: Record


def find_table(path: Path) -> bool:
    """Whether a path is a file that is called as a table."""
    return path.is_file() and path.suffix in TABLE_SUFFIXES


def read_table_rows(
    path: Path,
    *,
    root: Path | None = None,
    path_column: str = "path",
    label_column: str | Sequence[str] = "label",
    label_separator: str | None = None,
    allow_no_label: bool = False,
    split_column: str | None = None,
    key_column: str | None = None,
    group_columns: Sequence[str] = (),
) -> Reading[TableRow]:
    """Read the images that a table names, with their labels; options are those of `TableData`.

    Raises:
        ValueError: A column is missing, a cell means nothing, or rows contradict each other.
    """
    table = read_table(path)
    if table.path.suffix == ".json" and label_separator is None:
        several = [row["path"] for row in table.rows if CHOICE_SEPARATOR in row["label"]]
        if several:
            raise DataError(
                f"{len(several)} images of {table.path} have several choices, such as '{several[0]}'. Give "
                f"--data.label_separator '{CHOICE_SEPARATOR}', or leave one choice of each."
            )
    root = root if root is not None else table.path.parent
    names = read_names(table, path_column, root)
    label_names, labels = read_labels(table, label_column, label_separator, allow_no_label)
    multilabel = label_separator is not None or not isinstance(label_column, str)
    for column in group_columns:
        table.require(column, "--data.group_columns")
    stated = read_stated_splits(table, split_column)
    # Before any draw, which an image in two rows would fail for a reason that is none.
    _check_names(table, root, names, stated, labels)
    keys = names
    if key_column is not None:
        remedy = ", so nothing says which rows belong together. Fill it in."
        keys = table.read_column(key_column, "--data.key_column", "key", remedy)
        _check_keys(table, key_column, keys, stated)
    splits: dict[str, list[TableRow]] = {}
    for index, (cells, name) in enumerate(zip(table.rows, names, strict=True)):
        groups = tuple(cells[column] for column in group_columns)
        label = labels[index] if multilabel else labels[index][0]
        record = Record(join_path(root, name), label, name, groups, key=keys[index])
        row = TableRow(index, cells, keys[index], record)
        splits.setdefault(stated[index], []).append(row)
    return Reading(splits, label_names)


def join_path(root: Path, name: str) -> str:
    """Path of an image, with forward slashes."""
    # As text: for a large table, making a Path of each name would take most of the time.
    return os.path.join(root, name).replace(os.sep, "/")  # noqa: PTH118


def read_names(table: Table, column: str, root: Path) -> list[str]:
    """Names of the images, by the column of their paths: normal paths, relative to the root.

    Backslashes of Windows are taken for slashes where no file is called so. Where all are without a suffix, as ids are,
    the suffixes of the files of these names are added. Both with a warning.

    Raises:
        ValueError: The column is missing, a cell is empty, or one without a suffix is the name of two images.
    """
    remedy = ". Fill it in, or delete the row."
    cells = table.read_column(column, "--data.path_column", "path", remedy)
    names = [os.path.normpath(cell.strip()).replace(os.sep, "/") for cell in cells]
    turned = {
        name: os.path.normpath(name.replace("\\", "/"))
        for name in names
        if "\\" in name and not os.path.exists(join_path(root, name))  # noqa: PTH110 - as join_path
    }
    if turned:
        name, file = next(iter(turned.items()))
        warnings.warn(
            f"The column '{column}' of {table.path} writes paths with backslashes: '{name}' is taken for '{file}', and "
            f"{len(turned) - 1} more.",
            stacklevel=2,
        )
        names = [turned.get(name, name) for name in names]
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
        return names
    return _add_suffixes(table, column, names, root)


def _add_suffixes(table: Table, column: str, names: Sequence[str], root: Path) -> list[str]:
    suffixes: dict[str, list[str]] = {}
    for path in list_files_beside(join_path(root, name) for name in names):
        stem, suffix = os.path.splitext(path)  # noqa: PTH122
        if suffix.lower() in IMAGE_SUFFIXES:
            suffixes.setdefault(stem, []).append(suffix)
    completed = []
    for index, name in enumerate(names):
        of_name = sorted(suffixes.get(join_path(root, name), [""]))
        if len(of_name) > 1:
            raise DataError(
                f"{table.where(index)}: '{name}' may be {' or '.join(name + suffix for suffix in of_name)}. Write the "
                "suffix into the table."
            )
        completed.append(name + of_name[0])
    changed = [(name, file) for name, file in zip(names, completed, strict=True) if name != file]
    if changed:
        name, file = changed[0]
        warnings.warn(
            f"The column '{column}' of {table.path} names images without their suffixes: '{name}' is taken for "
            f"'{file}', and {len(changed) - 1} more.",
            stacklevel=3,
        )
    return completed


def read_stated_splits(table: Table, column: str | None) -> list[str]:
    """The split of each row by the table; "" where it has no splits."""
    if column is not None or SPLIT_COLUMN in table.columns:
        return table.read_splits(column or SPLIT_COLUMN, "--data.split_column")
    # Splits are not drawn where a column seems to hold them under a slightly other name.
    for other in table.columns:
        if other.strip().lower() == SPLIT_COLUMN:
            raise DataError(
                f"{table.path} has a column '{other}', which is not '{SPLIT_COLUMN}', so splits would be drawn. "
                f"Rename it, or name it: --data.split_column '{other}'."
            )
    return [""] * len(table.rows)


def _check_names(
    table: Table,
    root: Path,
    names: Sequence[str],
    splits: Sequence[str],
    labels: Sequence[tuple[int, ...]],
) -> None:
    seen: dict[str, int] = {}
    root = root.absolute()
    for index, name in enumerate(names):
        # One image may be named from the root in one row, and in full in another.
        path = os.path.normpath(os.path.join(root, name))  # noqa: PTH118
        first = seen.setdefault(path, index)
        if first == index:
            continue
        lines = f"lines {table.lines[first]} and {table.lines[index]} of {table.path}"
        if labels[first] != labels[index]:
            raise DataError(
                f"'{name}' has two labels, in {lines}. Keep one of them; if both apply, write them in one cell and "
                "set label_separator."
            )
        if splits[first] != splits[index]:
            raise DataError(
                f"'{name}' is in {splits[first]} and in {splits[index]}, in {lines}: what is trained on would be "
                "tested on. Keep one of the rows."
            )
        raise DataError(f"'{name}' is listed twice, in {lines}. Keep one row for each image.")


def _check_keys(table: Table, column: str, keys: Sequence[str], splits: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for index, key in enumerate(keys):
        first = seen.setdefault(key, index)
        if splits[first] != splits[index]:
            raise DataError(
                f"{column} '{key}' is in {splits[first]} and in {splits[index]} (lines {table.lines[first]} "
                f"and {table.lines[index]} of {table.path}): results would be too good. Put all its rows in one "
                "split, or delete the column of splits to have them drawn."
            )
