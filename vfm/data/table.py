"""Images listed in a table, with one label or several."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Unpack

from vfm_runtime.errors import DataError, OptionError

from vfm.data.base import ImageData
from vfm.data.copies import find_copies, warn_of_copies
from vfm.data.folder import SOLVED_ON_ALL, SPLIT_FILE
from vfm.data.labelstudio import find_choices
from vfm.data.layouts import Reading, list_files_beside
from vfm.data.options import LoaderOptions
from vfm.data.records import Record, list_labels
from vfm.data.splits import SPLITS, check_fractions, complete_splits
from vfm.data.table_rows import SPLIT_COLUMN, TableRow, join_path, read_names, read_table_rows
from vfm.data.tables import read_table, write_rows
from vfm.data.transforms import Augment
from vfm.spec import Spec

_MAX_ABSENT = 0.01


class TableData(ImageData):
    """Images named by the rows of a CSV, TSV or Parquet table.

    Labels stand in one column, several of them joined by a separator, or in one 0/1 column for each label. A column of
    splits is followed; without one, splits are drawn. `predict` answers for every image of the table.
    """

    can_balance = True

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
        augment: Augment = "auto",
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Make the data module; the table is read by `setup`.

        Args:
            table: A .csv, .tsv or .parquet file; or tasks of Label Studio with choices, a .json file or its folder.
            root: Folder that relative paths start from; by default that of the table.
            path_column: Column of the images' paths.
            label_column: Column of the labels; or a list of columns, each of a label, with 0 or 1 in them (true/false,
                yes/no), for several labels an image.
            label_separator: Text between the labels of a cell, for several labels an image.
            allow_no_label: Whether an empty cell means that none of several labels applies; it is refused otherwise.
            split_column: Column with train, val or test; by default `split`, where there is one.
            key_column: Column of keys (patient, video, product), whose rows all go to one split.
            group_columns: Columns by whose values results are reported too.
            val_fraction: Fraction of the images for validation, where the table has no split for it.
            test_fraction: Fraction of the images for the test, where the table has no splits.
            augment: Augmentation of training images, as for `ImageData`.
            **options: Options of every data module.

        Raises:
            ValueError: An argument lies outside its range, or contradicts another.
        """
        super().__init__(augment=augment, **options)
        check_fractions(val_fraction, test_fraction)
        several = not isinstance(label_column, str)
        if several and label_separator is not None:
            raise OptionError(
                "label_separator is for labels in one column, but label_column names several. Give one of the two."
            )
        if label_separator == "":
            raise OptionError(
                "label_separator is empty. Give what stands between labels, such as '|'."
            )
        if allow_no_label and not several and label_separator is None:
            raise OptionError(
                "allow_no_label is for several labels an image. "
                "Give label_separator too, or take the rows without a label out."
            )
        self.table = find_choices(Path(table)) or Path(table)
        self.root = Path(root) if root is not None else self.table.parent
        self.path_column = path_column
        self.label_column = label_column
        self.label_separator = label_separator
        self.allow_no_label = allow_no_label
        self.split_column = split_column
        self.key_column = key_column
        if isinstance(group_columns, str):
            raise OptionError(
                f"group_columns is '{group_columns}'. Give a list: ['{group_columns}']."
            )
        self.group_columns = tuple(group_columns)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.multilabel = several or label_separator is not None
        self._rows: list[TableRow] = []

    def read(self) -> dict[str, list[Record]]:
        """Read the table, and find the images of each split."""
        reading = read_table_rows(
            self.table,
            root=self.root,
            path_column=self.path_column,
            label_column=self.label_column,
            label_separator=self.label_separator,
            allow_no_label=self.allow_no_label,
            split_column=self.split_column,
            key_column=self.key_column,
            group_columns=self.group_columns,
        )
        self.labels = tuple(reading.labels or ())
        self.val_is_drawn = "val" not in reading.splits
        reading, copies = self._find_copies(reading)
        splits = complete_splits(
            reading.splits,
            lambda row: (row.key, list_labels(row.record)),
            self.labels,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
        )
        if self.multilabel:
            self._check_learned(splits.get("train", []))
        warn_of_copies(
            copies,
            {row.record.name: row.record.label for row in reading.entries},
            {split: [row.record.name for row in rows] for split, rows in splits.items()},
            self.table,
        )
        self._rows = sorted(reading.entries, key=attrgetter("position"))
        self._check_files([row.record.name for row in self._rows])
        return {
            split: sorted((row.record for row in rows), key=attrgetter("name"))
            for split, rows in splits.items()
        }

    def read_predict(self) -> list[Record]:
        """Every image of the table; it needs no labels."""
        names = read_names(read_table(self.table), self.path_column, self.root)
        self._check_files(names)
        return [Record(join_path(self.root, name), -1, name) for name in dict.fromkeys(names)]

    def remedy(self, split: str) -> str:
        """What to do about a missing split."""
        drawn = {"val": "set val_fraction above 0", "test": "set test_fraction above 0"}.get(split)
        rows = f"Add rows with split '{split}' to {self.table}"
        remedy = f"{rows}, or, where the table has no splits, {drawn}." if drawn else f"{rows}."
        return remedy + SOLVED_ON_ALL * (split == "val")

    def keep_split(self, folder: Path) -> Spec:
        """Write `splits.csv` to a run's folder, since later rows would shift a split that is drawn again.

        It is the table with a column of splits.
        """
        self._read_once()
        column = self.split_column or SPLIT_COLUMN
        labels = [self.label_column] if isinstance(self.label_column, str) else self.label_column
        keys = [self.key_column] if self.key_column is not None else []
        columns = [self.path_column, *labels, *keys, *self.group_columns, column]
        splits = {r.name: split for split in SPLITS for r in self.records.get(split, [])}
        # A val split that the table states is in no split where a fold has its place.
        rows = [
            row.cells | {column: splits[row.record.name]}
            for row in self._rows
            if row.record.name in splits
        ]
        path = folder.absolute() / SPLIT_FILE
        write_rows(path, list(dict.fromkeys(columns)), rows)
        return self._pin_split(table=str(path), root=str(self.root.absolute()), split_column=column)

    def _find_copies(self, reading: Reading[TableRow]) -> tuple[Reading[TableRow], dict[str, str]]:
        """Give exact copies one key, but where a column states the keys: what belongs together is known then."""
        paths = {row.record.name: str(row.record.source) for row in reading.entries}
        copies = find_copies(paths, self.table, is_drawn=self.val_is_drawn)
        if self.key_column is not None or not copies:
            return reading, copies
        splits = {}
        for split, rows in reading.splits.items():
            keys = [copies.get(row.record.name, row.key) for row in rows]
            splits[split] = [
                row._replace(key=key, record=replace(row.record, key=key))
                for row, key in zip(rows, keys, strict=True)
            ]
        return reading._replace(splits=splits), copies

    def _check_files(self, names: Sequence[str]) -> None:
        paths = [join_path(self.root, name) for name in names]
        present = list_files_beside(paths)
        absent = [name for name, path in zip(names, paths, strict=True) if path not in present]
        if not absent:
            return
        listed = ", ".join(f"'{name}'" for name in absent[:3])
        problem = (
            f"{len(absent)} of the {len(names)} files that {self.table} names are not in {self.root}: {listed}"
            f"{', ...' if len(absent) > 3 else ''}."
        )
        if len(absent) > _MAX_ABSENT * len(names):
            raise DataError(
                f"{problem} Relative paths start from --data.root, by default the table's folder. "
                "Set it, or mend the paths."
            )
        warnings.warn(f"{problem} They are left out, and listed with the results.", stacklevel=2)

    def _check_learned(self, rows: Sequence[TableRow]) -> None:
        """Refuse labels that no training image has; a column of zeros is in no other split either."""
        learned = {label for row in rows for label in list_labels(row.record)}
        missing = [name for label, name in enumerate(self.labels) if label not in learned]
        if missing and rows:
            raise DataError(
                f"No training image of {self.table} has the label '{missing[0]}'. Add training images of it, or take "
                "the label out."
            )
