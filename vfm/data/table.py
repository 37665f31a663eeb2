"""Images listed in a table, with one label or several."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from vfm.data.base import ImageData
from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.dataset import Record
from vfm.data.folder import SPLIT_FILE
from vfm.data.splits import SPLITS, grouped_split
from vfm.data.table_labels import Labels, read_labels
from vfm.data.tables import Table, read_table, write_rows
from vfm.data.transforms import Augment
from vfm.spec import Spec

_SPLIT = "split"
_MAX_ABSENT = 0.01


class TableData(ImageData):
    """Images named by the rows of a CSV, TSV or Parquet table.

    Labels stand in one column, several of them joined by a separator, or in one 0/1 column for each label. A column of
    splits is followed; without one, splits are drawn. `predict` answers for every image of the table.
    """

    def __init__(
        self,
        table: str | Path,
        *,
        root: str | Path | None = None,
        path_column: str = "path",
        label_column: str | list[str] = "label",
        label_separator: str | None = None,
        allow_no_label: bool = False,
        split_column: str | None = None,
        key_column: str | None = None,
        group_columns: Sequence[str] = (),
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int = 32,
        num_workers: int | None = None,
        augment: Augment = "standard",
        seed: int = 0,
    ) -> None:
        """Make the data module; the table is read by `setup`.

        Args:
            table: A .csv, .tsv or .parquet file.
            root: The folder that relative paths start from; by default that of the table.
            path_column: Column of the images' paths.
            label_column: Column of the labels; or a list of columns, each of a label, with 0 or 1 in
                them (true/false, yes/no), for several labels an image.
            label_separator: What stands between the labels of a cell, for several labels an image.
            allow_no_label: Whether an empty cell means that none of several labels applies; it is
                refused otherwise.
            split_column: Column with train, val or test; by default `split`, where there is one.
            key_column: Rows of one key (patient, video, product) all go to one split.
            group_columns: Columns by whose values results are reported too.
            val_fraction: Share of the images for validation, where the table has no split for it.
            test_fraction: Share of the images for the test, where the table has no splits.
            batch_size: Images in a batch, on each process.
            num_workers: Processes that open images, as for `ImageData`.
            augment: Augmentation of training images, as for `ImageData`.
            seed: Of order, augmentation and splits.

        Raises:
            ValueError: An argument lies outside its range, or contradicts another.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, augment=augment, seed=seed)
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction is {val_fraction} and test_fraction is {test_fraction}. "
                "Give shares from 0 that leave something to train on, such as 0.1 and 0.1."
            )
        several = not isinstance(label_column, str)
        if several and label_separator is not None:
            raise ValueError(
                "label_separator is for labels in one column, but label_column names several. Give one of the two."
            )
        if label_separator == "":
            raise ValueError(
                "label_separator is empty. Give what stands between labels, such as '|'."
            )
        if allow_no_label and not several and label_separator is None:
            raise ValueError(
                "allow_no_label is for several labels an image. "
                "Give label_separator too, or take the rows without a label out."
            )
        self.table = Path(table)
        self.root = Path(root) if root is not None else self.table.parent
        self.path_column = path_column
        self.label_column = label_column
        self.label_separator = label_separator
        self.allow_no_label = allow_no_label
        self.split_column = split_column
        self.key_column = key_column
        if isinstance(group_columns, str):
            raise ValueError(
                f"group_columns is '{group_columns}'. Give a list: ['{group_columns}']."
            )
        self.group_columns = tuple(group_columns)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.multilabel = several or label_separator is not None
        self._kept: tuple[list[str], list[dict[str, str]]] = ([], [])

    def read(self) -> dict[str, list[Record]]:
        """Read the table, and find the images of each split."""
        table = read_table(self.table)
        names = self._names(table)
        labels = read_labels(table, self.label_column, self.label_separator, self.allow_no_label)
        self.labels = labels.names
        for column in self.group_columns:
            table.require(column, "--data.group_columns")
        given = self._given(table)
        # Before the draw, which an image in two rows would fail for a reason that is none.
        self._check_names(table, names, given, labels)
        splits = self._splits(table, names, labels, given)
        if self.multilabel:
            _check_learned(table, splits, labels)
        self._check_files(names)
        records: dict[str, list[Record]] = {}
        order = sorted(range(len(names)), key=names.__getitem__)
        for split in SPLITS:
            members = [i for i in order if splits[i] == split]
            if members:
                records[split] = [self._record(table, i, names[i], labels) for i in members]
        self._keep(table, splits)
        return records

    def read_predict(self) -> list[Record]:
        """Every image of the table; it needs no labels."""
        names = self._names(read_table(self.table))
        self._check_files(names)
        return [Record(self._path(name), -1, name) for name in dict.fromkeys(names)]

    def remedy(self, split: str) -> str:
        """What to do about a missing split."""
        drawn = {"val": "set val_fraction above 0", "test": "set test_fraction above 0"}.get(split)
        rows = f"Add rows with split '{split}' to {self.table}"
        return f"{rows}, or, where the table has no splits, {drawn}." if drawn else f"{rows}."

    def keep_split(self, folder: Path) -> Spec:
        """Write `splits.csv`, the table with its splits, since later rows would shift a split that is drawn again.

        Args:
            folder: Of the training run.
        """
        self._read_once()
        path = folder.absolute() / SPLIT_FILE
        write_rows(path, *self._kept)
        spec = self.spec
        spec["init_args"] |= {
            "table": str(path),
            "root": str(self.root.absolute()),
            "split_column": self.split_column or _SPLIT,
        }
        return spec

    def _names(self, table: Table) -> list[str]:
        """The images' names: normal paths, relative to the root."""
        table.require(self.path_column, "--data.path_column")
        names = []
        for index, row in enumerate(table.rows):
            cell = row[self.path_column]
            if not cell.strip():
                raise ValueError(
                    f"{table.where(index)}: no path in the column '{self.path_column}'. "
                    "Fill it in, or delete the row."
                )
            names.append(os.path.normpath(cell.strip()).replace(os.sep, "/"))
        return names

    def _record(self, table: Table, index: int, name: str, labels: Labels) -> Record:
        groups = tuple(table.rows[index][column] for column in self.group_columns)
        return Record(self._path(name), labels.of[index], name, groups)

    def _given(self, table: Table) -> list[str]:
        """The split of each row by the table; "" where it has no splits."""
        if self.split_column is None and _SPLIT not in table.columns:
            _check_no_other_split(table)
            return [""] * len(table.rows)
        return _given_splits(table, self.split_column or _SPLIT)

    def _splits(
        self, table: Table, names: Sequence[str], labels: Labels, given: Sequence[str]
    ) -> list[str]:
        """The split of each row."""
        keys = list(names)
        if self.key_column is not None:
            keys = _keys(table, self.key_column)
        val, test = self.val_fraction, self.test_fraction
        if not any(given):
            shares = {"train": 1 - val - test, "val": val, "test": test}
            return grouped_split(keys, labels.stratum, labels.names, shares, self.seed)
        splits = list(given)
        if self.key_column is not None:
            _check_keys(table, self.key_column, keys, splits)
        if "train" in splits and "val" not in splits and val:
            members = [i for i, split in enumerate(splits) if split == "train"]
            drawn = grouped_split(
                [keys[i] for i in members],
                [labels.stratum[i] for i in members],
                labels.names,
                {"train": 1 - val, "val": val},
                self.seed,
            )
            for index, split in zip(members, drawn, strict=True):
                splits[index] = split
        return splits

    def _check_names(
        self, table: Table, names: Sequence[str], splits: Sequence[str], labels: Labels
    ) -> None:
        seen: dict[str, int] = {}
        root = self.root.absolute()
        for index, name in enumerate(names):
            # One image may be named from the root in one row, and in full in another.
            place = os.path.normpath(os.path.join(root, name))  # noqa: PTH118
            first = seen.setdefault(place, index)
            if first == index:
                continue
            lines = f"lines {table.lines[first]} and {table.lines[index]} of {self.table}"
            if labels.of[first] != labels.of[index]:
                raise ValueError(
                    f"'{name}' has two labels, in {lines}. Keep one of them; if both apply, write them in one cell and "
                    "set label_separator."
                )
            if splits[first] != splits[index]:
                raise ValueError(
                    f"'{name}' is in {splits[first]} and in {splits[index]}, in {lines}: what is trained on would be "
                    "tested on. Keep one of the rows."
                )
            raise ValueError(f"'{name}' is listed twice, in {lines}. Keep one row for each image.")

    def _path(self, name: str) -> str:
        # As text: for a large table, making a Path of each name would take most of the time.
        return os.path.join(self.root, name).replace(os.sep, "/")  # noqa: PTH118

    def _check_files(self, names: Sequence[str]) -> None:
        paths = [self._path(name) for name in names]
        present = _files({path.rpartition("/")[0] for path in paths})
        absent = [name for name, path in zip(names, paths, strict=True) if path not in present]
        if not absent:
            return
        listed = ", ".join(f"'{name}'" for name in absent[:3]) + (
            ", ..." if len(absent) > 3 else ""
        )
        said = f"{len(absent)} of the {len(names)} files that {self.table} names are not in {self.root}: {listed}."
        if len(absent) > _MAX_ABSENT * len(names):
            raise ValueError(
                f"{said} Relative paths start from --data.root, by default the table's folder. "
                "Set it, or mend the paths."
            )
        warnings.warn(f"{said} They are left out, and listed with the results.", stacklevel=2)

    def _keep(self, table: Table, splits: Sequence[str]) -> None:
        column = self.split_column or _SPLIT
        labels = [self.label_column] if isinstance(self.label_column, str) else self.label_column
        more = [self.key_column] if self.key_column is not None else []
        names = [self.path_column, *labels, *more, *self.group_columns, column]
        rows = [row | {column: split} for row, split in zip(table.rows, splits, strict=True)]
        self._kept = (list(dict.fromkeys(names)), rows)


def _check_no_other_split(table: Table) -> None:
    """Refuse to draw splits where a column seems to hold them under a slightly other name."""
    for column in table.columns:
        if column.strip().lower() == _SPLIT:
            raise ValueError(
                f"{table.path} has a column '{column}', which is not '{_SPLIT}', so splits would be drawn. "
                f"Rename it, or name it: --data.split_column '{column}'."
            )


def _given_splits(table: Table, column: str) -> list[str]:
    table.require(column, "--data.split_column")
    splits = []
    for index, row in enumerate(table.rows):
        split = SPLIT_FOLDERS.get(row[column].strip().lower())
        if split is None:
            raise ValueError(
                f"{table.where(index)}: the split is '{row[column]}'. Choices: {', '.join(SPLITS)}."
            )
        splits.append(split)
    return splits


def _keys(table: Table, column: str) -> list[str]:
    table.require(column, "--data.key_column")
    for index, row in enumerate(table.rows):
        if not row[column].strip():
            raise ValueError(
                f"{table.where(index)}: no key in the column '{column}', so nothing says which rows belong together. "
                "Fill it in."
            )
    return [row[column] for row in table.rows]


def _check_keys(table: Table, column: str, keys: Sequence[str], splits: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for index, key in enumerate(keys):
        first = seen.setdefault(key, index)
        if splits[first] != splits[index]:
            raise ValueError(
                f"{column} '{key}' is in {splits[first]} and in {splits[index]} (lines {table.lines[first]} "
                f"and {table.lines[index]} of {table.path}): results would be too good. Put all its rows in one "
                "split, or delete the column of splits to have them drawn."
            )


def _check_learned(table: Table, splits: Sequence[str], labels: Labels) -> None:
    """Refuse labels that no training image has; a column of zeros is in no other split either."""
    learned = {k for s, of in zip(splits, labels.stratum, strict=True) if s == "train" for k in of}
    missing = [name for k, name in enumerate(labels.names) if k not in learned]
    if missing and "train" in splits:
        raise ValueError(
            f"No training image of {table.path} has the label '{missing[0]}'. Add training images of it, or take the "
            "label out."
        )


def _files(folders: set[str]) -> set[str]:
    """Paths of all files in these folders; one look at a folder in place of one at each file."""
    found: set[str] = set()
    for folder in folders:
        # Of "/a.png" nothing is left before the last slash.
        if Path(folder or "/").is_dir():
            with os.scandir(folder or "/") as entries:
                found.update(f"{folder}/{entry.name}" for entry in entries if entry.is_file())
    return found
