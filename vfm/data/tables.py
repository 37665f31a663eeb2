"""Tables as rows of text: CSV, TSV and Parquet, and what is wrong with them in plain words."""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vfm_runtime.errors import DataError, suggest

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.labelstudio import find_choices, read_choices

_DELIMITERS = ",;\t|"
_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")


class Table(NamedTuple):
    """Rows of a table, every cell as text."""

    path: Path
    columns: list[str]
    rows: list[dict[str, str]]
    lines: list[int]
    """Of each row the line of the file that it ends in; in Parquet the number of the row, from 1."""

    def where(self, index: int) -> str:
        """How to call a row in a message."""
        return f"{self.path}, line {self.lines[index]}"

    def require(self, column: str, option: str) -> None:
        """Refuse a table without a column.

        Raises:
            ValueError: With the columns there are.
        """
        if column in self.columns:
            return
        raise DataError(
            f"{self.path} has no column '{column}' ({option}).{suggest(column, self.columns)} "
            f"Columns: {', '.join(self.columns)}."
        )

    def read_column(self, column: str, option: str, content: str, remedy: str) -> list[str]:
        """The cells of a column; an empty one is refused by a message that says what it should hold, and the remedy.

        Raises:
            ValueError: The column is missing, or a cell is empty.
        """
        self.require(column, option)
        for index, row in enumerate(self.rows):
            if not row[column].strip():
                raise DataError(
                    f"{self.where(index)}: no {content} in the column '{column}'{remedy}"
                )
        return [row[column] for row in self.rows]

    def read_splits(self, column: str, option: str) -> list[str]:
        """The split of each row, by any of the names that split folders may have.

        Raises:
            ValueError: The column is missing, or a cell names no split.
        """
        self.require(column, option)
        splits = [SPLIT_FOLDERS.get(row[column].strip().lower(), "") for row in self.rows]
        if "" in splits:
            index = splits.index("")
            cell = self.rows[index][column]
            raise DataError(
                f"{self.where(index)}: the split is '{cell}'. Choices: train, val, test."
            )
        return splits


def read_table(path: Path) -> Table:
    """Read a .csv, .tsv or .txt file in UTF-8 whose first line names the columns, a .parquet file, or tasks of choices.

    Raises:
        ValueError: It is missing, empty, of another kind, or not a table.
    """
    if tasks := find_choices(path):
        rows = read_choices(tasks)
        if not rows:
            raise DataError(f"{tasks} has no task with an answer. Choose a label of each image.")
        return Table(tasks, list(rows[0]), rows, list(range(1, len(rows) + 1)))
    if not path.is_file():
        what = "is a folder, not a table" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what} (looked in {Path.cwd()}). Check --data.table.")
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"{path} is no table that can be read. Choices: {', '.join(_SUFFIXES)}; save it as CSV."
        )
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path)
    twice = [name for name, count in Counter(table.columns).items() if count > 1]
    if twice:
        raise DataError(f"{path} has two columns '{twice[0]}'. Rename or delete one of them.")
    if not table.rows:
        raise DataError(f"{path} has no rows below its header. Give a table with a row an image.")
    return table


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows as CSV, of each only these columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> Table:
    """Read a file in UTF-8, or in UTF-16 as Excel writes "Unicode text", whose first line names the columns.

    Raises:
        ValueError: It is not a table.
    """
    try:
        with path.open("rb") as file:
            marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        # Excel puts a mark before the first column's name.
        with path.open(newline="", encoding="utf-16" if marked else "utf-8-sig") as file:
            header = next((line for line in iter(file.readline, "") if line.strip()), "")
            file.seek(0)
            # A column may be named "left, right".
            delimiter = max(_DELIMITERS, key=re.sub('"[^"]*"', "", header).count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            # An empty line, most often the last, is no row, nor are the empty cells that Excel leaves of deleted ones.
            cells = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not in UTF-8 (byte {error.start}). Save it as 'CSV UTF-8', or convert it: "
            f"iconv -f latin1 -t utf8 {path.name}."
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{path} cannot be read as a table: {error}. Look at its quotes."
        ) from error
    if not cells:
        raise DataError(
            f"{path} is empty. Its first line must name the columns, such as path,label."
        )
    (_, columns), *cells = cells
    for line, row in cells:
        if len(row) != len(columns):
            raise DataError(
                f"{path}, line {line}: {len(row)} cells, but the header has {len(columns)}. "
                "Put quotes around cells that hold the delimiter."
            )
    rows = [dict(zip(columns, row, strict=True)) for _, row in cells]
    return Table(path, columns, rows, [line for line, _ in cells])


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"{path} is a Parquet file, which takes pyarrow to read: pip install 'vfm[parquet]'. "
            "Or save the table as CSV."
        ) from error
    try:
        content = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet: {error}. Copy or write it again."
        ) from error
    rows = [
        {name: _format_cell(value) for name, value in row.items()} for row in content.to_pylist()
    ]
    return Table(path, content.column_names, rows, list(range(1, len(rows) + 1)))


def _format_cell(value: Any) -> str:
    if value is None or value != value:  # not a number: how numpy writes an empty cell
        return ""
    if isinstance(value, list):
        return "\n".join(map(_format_cell, value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers with gaps is stored as floats
    return str(value)
