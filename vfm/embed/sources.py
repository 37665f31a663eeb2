"""Images to embed, of a folder or a table, each with the values that are stored beside its vector."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vfm_runtime.errors import DataError

from vfm.data.class_folders import SPLIT_FOLDERS, list_images
from vfm.data.dataset import Record, describe_content, read_mtime
from vfm.data.table_rows import join_path, read_names
from vfm.data.tables import read_table

RESERVED = ("path", "sha256", "vector", "vfm_source", "vfm_stamp")
"""Columns of every store; those of a table are stored beside them."""

Cell = str | int | float | None


@dataclass(frozen=True)
class SourceImage:
    """One image to embed."""

    path: str
    """Absolute path, by which a store knows it."""
    record: Record
    """Where its bytes are."""
    columns: Mapping[str, Cell]
    """Value by column, such as its label."""

    @property
    def stamp(self) -> str:
        """A checksum that changes with the file's size or time, or with a value of its columns."""
        parts = (
            describe_content(self.record),
            read_mtime(self.record),
            sorted(self.columns.items()),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def list_source_images(source: Path, path_column: str = "path") -> list[SourceImage]:
    """List the images of a folder, or of a table.

    Images of a folder have the columns `label` and `split`, empty where the folders say nothing; those of a table all
    of its columns, as numbers where every cell is one.

    Args:
        source: Folder, or .csv, .tsv or .parquet file.
        path_column: Column of a table with the paths of the images, relative to the table.

    Raises:
        DataError: There are no images, or the table cannot be understood.
    """
    return _list_folder(source) if source.is_dir() else _list_table(source, path_column)


def _list_folder(root: Path) -> list[SourceImage]:
    paths = [Path(path) for path in list_images(root)]
    parts = [path.relative_to(root).parts for path in paths]
    tops = {names[0].lower() for names in parts if len(names) > 1}
    has_splits = bool(tops) and tops <= set(SPLIT_FOLDERS)
    images = []
    for path, names in zip(paths, parts, strict=True):
        folders = names[:-1]
        split = SPLIT_FOLDERS[folders[0].lower()] if has_splits and folders else None
        classes = folders[1:] if has_splits else folders
        columns = {"label": classes[0] if classes else None, "split": split}
        absolute = path.absolute().as_posix()
        images.append(SourceImage(absolute, Record(absolute, -1, "/".join(names)), columns))
    return images


def _list_table(file: Path, path_column: str) -> list[SourceImage]:
    table = read_table(file)
    root = file.absolute().parent
    names = read_names(table, path_column, root)
    columns = [name for name in table.columns if name != path_column]
    taken = [name for name in columns if name in RESERVED]
    if taken:
        raise DataError(
            f"{file} has a column '{taken[0]}', which a store has for itself. Rename it in the table."
        )
    cells = {name: _convert_cells([row[name] for row in table.rows]) for name in columns}
    first: dict[str, int] = {}
    images = []
    for index, name in enumerate(names):
        path = Path(join_path(root, name)).as_posix()
        if first.setdefault(path, index) != index:
            raise DataError(
                f"{table.where(index)}: '{name}' is in the table twice. Keep one row for each image."
            )
        values = {column: cells[column][index] for column in columns}
        images.append(SourceImage(path, Record(path, -1, name), values))
    return images


def _convert_cells(texts: Sequence[str]) -> list[Cell]:
    """Return the cells of a column: whole numbers or numbers where all are, else text; empty ones are None."""
    present = [text.strip() for text in texts if text.strip()]
    convert: type[int] | type[float] | type[str] = str
    # A leading zero is part of a name, such as a postal code.
    if present and all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", text) for text in present):
        convert = int
    elif present and all(
        re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", text) for text in present
    ):
        convert = float
    return [convert(text.strip()) if text.strip() else None for text in texts]
