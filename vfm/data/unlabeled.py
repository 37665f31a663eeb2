"""Images without labels, from a folder in any layout or the paths of a table, as a data module for pretraining."""

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Unpack

from vfm_runtime.errors import OptionError

from vfm.data.base import ImageData
from vfm.data.class_folders import SPLIT_FOLDERS, list_images, write_prefix
from vfm.data.folder import SPLIT_FILE
from vfm.data.group_columns import read_columns
from vfm.data.options import LoaderOptions
from vfm.data.records import Record
from vfm.data.splits import SPLITS, check_fractions, split_by_class
from vfm.data.table_rows import SPLIT_COLUMN, find_table, join_path, read_names
from vfm.data.tables import read_table, write_rows
from vfm.data.transforms import Augment
from vfm.spec import Spec


class UnlabeledData(ImageData):
    """All images below a folder, whatever its subfolders mean, or those that a table names.

    A table's column `split` is followed, and folders named train, val and test, beside which all others count for
    train; without, validation images are drawn. Labels that there may be are not read:
    with `FolderData`, `TableData` and the others, which read them, a pretraining also logs kNN.
    """

    can_balance = True

    def __init__(
        self,
        root: str | Path,
        *,
        images: str | Path | None = None,
        path_column: str = "path",
        group_columns: Sequence[str] = (),
        val_fraction: float = 0.05,
        augment: Augment = "auto",
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Make the data module; the folder or table is read by `setup`.

        Args:
            root: Folder of images, or a .csv, .tsv or .parquet table of their paths.
            images: Folder that relative paths of a table start from; by default that of the table.
            path_column: Column of the table with the images' paths.
            group_columns: Columns of the table by whose values `balance` draws and results are reported, such as the
                cluster that `vfm cluster --export` writes.
            val_fraction: Fraction of the images for validation, where no table says which; at least one.
            augment: Augmentation of training images, as for `ImageData`.
            **options: Options of every data module.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__(augment=augment, **options)
        check_fractions(val_fraction, 0.0)
        self.root = Path(root)
        self.images = Path(images) if images is not None else self.root.parent
        self.path_column = path_column
        self.group_columns = tuple(group_columns)
        if self.balance == "label":
            raise OptionError(
                f"--data.balance is label, and {type(self).__name__} reads no labels. Give --data.balance group with "
                "--data.group_columns, columns of the table; or --data TableData, which reads labels."
            )
        self.val_fraction = val_fraction

    def read(self) -> dict[str, list[Record]]:
        """Find the images of each split."""
        splits: dict[str, list[Record]] = {}
        records = self.read_predict()
        if self.group_columns and not find_table(self.root):
            raise OptionError(
                f"--data.group_columns names columns of a table, and {self.root} is a folder. Give a table with a "
                "column path and these (--data.root)."
            )
        groups = read_columns(
            records,
            self.group_columns,
            self.root,
            "--data.group_columns",
            source=str(self.root),
            path_column=self.path_column,
        )
        rows = zip(records, self._read_splits(records), *groups.values(), strict=True)
        for record, split, *values in rows:
            splits.setdefault(split or "train", []).append(replace(record, groups=tuple(values)))
        if "val" not in splits and self.val_fraction:
            self.val_is_drawn = True
            drawn = splits.pop("train", [])
            names = [record.name for record in drawn]
            fractions = {"train": 1 - self.val_fraction, "val": self.val_fraction}
            chosen = split_by_class(names, [self.root.name] * len(names), fractions, self.seed)
            for record, split in zip(drawn, chosen, strict=True):
                splits.setdefault(split, []).append(record)
        return {name: sorted(part, key=attrgetter("name")) for name, part in splits.items()}

    def read_predict(self) -> list[Record]:
        """Every image, each once."""
        if find_table(self.root):
            names = read_names(read_table(self.root), self.path_column, self.images)
            unique = dict.fromkeys(names)
            return [Record(join_path(self.images, name), -1, name) for name in unique]
        prefix = write_prefix(self.root)
        paths = list_images(self.root)
        return [Record(p, -1, p.removeprefix(prefix).replace("\\", "/")) for p in paths]

    def remedy(self, split: str) -> str:
        """What to do about a missing split."""
        if split == "val":
            return "Set val_fraction above 0; or, to train without validation, limit_val_batches=0 in the trainer."
        return f"Name images of it in the column '{SPLIT_COLUMN}' of a table."

    def keep_split(self, folder: Path) -> Spec:
        """Write `splits.csv`, a table that this module reads, since later files would shift a split."""
        self._read_once()
        path = folder.absolute() / SPLIT_FILE
        rows = [
            {
                "path": record.name,
                SPLIT_COLUMN: split,
                **dict(zip(self.group_columns, record.groups, strict=True)),
            }
            for split in SPLITS
            for record in self.records.get(split, [])
        ]
        write_rows(path, ["path", SPLIT_COLUMN, *self.group_columns], rows)
        images = self.images if find_table(self.root) else self.root
        return self._pin_split(root=str(path), images=str(images.absolute()), path_column="path")

    def _read_splits(self, records: Sequence[Record]) -> list[str]:
        """Split of each image by the table or by folders named train, val, test; "" where nothing says it."""
        if find_table(self.root):
            table = read_table(self.root)
            if SPLIT_COLUMN not in table.columns:
                return [""] * len(records)
            splits = table.read_splits(SPLIT_COLUMN, "the column")
            split_of = dict(
                zip(read_names(table, self.path_column, self.images), splits, strict=True)
            )
            return [split_of[record.name] for record in records]
        splits = [
            SPLIT_FOLDERS.get(record.name.partition("/")[0].lower(), "") for record in records
        ]
        return splits if "train" in splits else [""] * len(records)
