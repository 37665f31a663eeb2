"""Images listed in a table, with one label or several."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from vfm_runtime.errors import DataError, OptionError

from vfm.data.base import ImageData
from vfm.data.dataset import Record
from vfm.data.folder import SPLIT_FILE
from vfm.data.splits import SPLITS, complete_splits
from vfm.data.table_rows import (
    SPLIT_COLUMN,
    TableRow,
    join_path,
    read_names,
    read_table_rows,
)
from vfm.data.tables import read_table, write_rows
from vfm.data.transforms import Augment
from vfm.spec import Spec

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
            raise OptionError(
                f"val_fraction is {val_fraction} and test_fraction is {test_fraction}. "
                "Give shares from 0 that leave something to train on, such as 0.1 and 0.1."
            )
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
        self.table = Path(table)
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
        self._kept: tuple[list[str], list[dict[str, str]]] = ([], [])

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
        splits = complete_splits(
            reading.splits,
            lambda row: (row.key, row.labels),
            self.labels,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
        )
        if self.multilabel:
            self._check_learned(splits)
        self._check_files([row.record.name for row in sorted(reading.entries, key=itemgetter(0))])
        self._keep(splits)
        return {
            split: sorted((row.record for row in splits[split]), key=lambda record: record.name)
            for split in SPLITS
            if splits.get(split)
        }

    def read_predict(self) -> list[Record]:
        """Every image of the table; it needs no labels."""
        names = read_names(read_table(self.table), self.path_column)
        self._check_files(names)
        return [Record(join_path(self.root, name), -1, name) for name in dict.fromkeys(names)]

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
            "split_column": self.split_column or SPLIT_COLUMN,
        }
        return spec

    def _check_files(self, names: Sequence[str]) -> None:
        paths = [join_path(self.root, name) for name in names]
        present = _files({path.rpartition("/")[0] for path in paths})
        absent = [name for name, path in zip(names, paths, strict=True) if path not in present]
        if not absent:
            return
        listed = ", ".join(f"'{name}'" for name in absent[:3]) + (
            ", ..." if len(absent) > 3 else ""
        )
        said = f"{len(absent)} of the {len(names)} files that {self.table} names are not in {self.root}: {listed}."
        if len(absent) > _MAX_ABSENT * len(names):
            raise DataError(
                f"{said} Relative paths start from --data.root, by default the table's folder. "
                "Set it, or mend the paths."
            )
        warnings.warn(f"{said} They are left out, and listed with the results.", stacklevel=2)

    def _keep(self, splits: Mapping[str, Sequence[TableRow]]) -> None:
        column = self.split_column or SPLIT_COLUMN
        labels = [self.label_column] if isinstance(self.label_column, str) else self.label_column
        more = [self.key_column] if self.key_column is not None else []
        names = [self.path_column, *labels, *more, *self.group_columns, column]
        rows = sorted(
            (
                (row.position, row.cells | {column: split})
                for split in splits
                for row in splits[split]
            ),
            key=itemgetter(0),
        )
        self._kept = (list(dict.fromkeys(names)), [cells for _, cells in rows])

    def _check_learned(self, splits: Mapping[str, Sequence[TableRow]]) -> None:
        """Refuse labels that no training image has; a column of zeros is in no other split either."""
        learned = {label for row in splits.get("train", ()) for label in row.labels}
        missing = [name for label, name in enumerate(self.labels) if label not in learned]
        if missing and splits.get("train"):
            raise DataError(
                f"No training image of {self.table} has the label '{missing[0]}'. Add training images of it, or take "
                "the label out."
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
