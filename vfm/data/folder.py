"""Images in class folders, as a data module."""

import os
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Unpack

from vfm_runtime.errors import DataError

from vfm.data.base import ImageData
from vfm.data.class_folders import check_class_names, list_images, read_tree, write_prefix
from vfm.data.copies import find_copies, warn_of_copies
from vfm.data.layouts import Reading
from vfm.data.options import LoaderOptions
from vfm.data.records import Record, list_labels
from vfm.data.splits import SplitRow, check_fractions, read_split, write_split
from vfm.data.transforms import Augment
from vfm.spec import Spec

SOLVED_ON_ALL = (
    " Where a head was solved on all images, its metrics are under 'out_of_fold' in results.json."
)
SPLIT_FILE = "splits.csv"


class FolderData(ImageData):
    """Images in `root/<class>/` or `root/<split>/<class>/`.

    Without split folders, validation and test images are drawn class by class; with a `train` folder but none for
    validation, validation images are drawn from it. Split folders are `train`, `val` (or `valid`, `validation`) and
    `test`. Folders inside a class folder are fine, hidden ones are ignored.

    `predict` answers for every image below `root`, whatever the folders.
    """

    can_balance = True

    def __init__(
        self,
        root: str | Path,
        *,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_file: str | Path | None = None,
        augment: Augment = "auto",
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Make the data module; the folder is read by `setup`.

        Args:
            root: Folder of the images.
            val_fraction: Fraction of the images for validation, where there is no folder for it.
            test_fraction: Fraction of the images for the test, where there are no split folders.
            split_file: Table with the columns path, label and split, as `save_split` writes it; used in place of
                folder names and fractions.
            augment: Augmentation of training images, as for `ImageData`.
            **options: Options of every data module.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__(augment=augment, **options)
        check_fractions(val_fraction, test_fraction)
        self.root = Path(root)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_file = Path(split_file) if split_file is not None else None

    def read(self) -> dict[str, list[Record]]:
        """Find the images of each split; only `predict` where there are no class folders."""
        if self.split_file is not None:
            reading = _index_classes(self.root, _match_split_file(self.root, self.split_file))
        else:
            reading = read_class_folders(self.root)
        if not reading.splits:
            return {"predict": self.read_predict()}
        self.labels = tuple(reading.labels or ())
        splits = reading.splits
        if self.split_file is None:
            paths = {record.name: str(record.source) for record in reading.entries}
            copies = find_copies(paths, self.root, is_drawn="val" not in splits)
            if copies:
                splits = {
                    split: [replace(record, key=copies.get(record.name, "")) for record in records]
                    for split, records in splits.items()
                }
            splits = self._complete_splits(splits, self.val_fraction, self.test_fraction)
            warn_of_copies(
                copies,
                {record.name: record.label for record in reading.entries},
                {split: [record.name for record in records] for split, records in splits.items()},
                self.root,
            )
        return {split: sorted(images, key=attrgetter("name")) for split, images in splits.items()}

    def read_predict(self) -> list[Record]:
        """Every image below the root, without labels."""
        images = list_images(self.root)
        names = _name_images(images, self.root)
        return [Record(path, -1, name) for path, name in zip(images, names, strict=True)]

    def remedy(self, split: str) -> str:
        """What to do about a missing split."""
        at_root = f"{self.root}/{split}/<class>/"
        if self.split_file is not None:
            remedy = f"Add lines with split '{split}' to {self.split_file}."
            return remedy + SOLVED_ON_ALL * (split == "val")
        if split == "val":
            return (
                f"Put images in {at_root} or set val_fraction above 0; "
                "to train without validation, set limit_val_batches=0 in the trainer."
            )
        if split == "test":
            return f"Put images in {at_root}; without split folders, set test_fraction above 0."
        return f"Put images in {self.root}/<class>/ or {at_root}."

    def save_split(self, path: str | Path) -> None:
        """Write a table of which image is in which split, for `split_file`."""
        self._read_once()
        rows = (
            SplitRow(record.name, self.labels[label], split)
            for split, records in self.records.items()
            for record in records
            for label in list_labels(record)
        )
        write_split(path, rows)

    def keep_split(self, folder: Path) -> Spec:
        """Write `splits.csv` to a run's folder, since later files would shift a split that is drawn again."""
        self._read_once()
        if self.leaves_val_out:
            return self.spec  # such a file lists all images, and these are in no split
        path = folder.absolute() / SPLIT_FILE
        self.save_split(path)
        # Where it lies now: a relative root would be another folder tomorrow.
        return self._pin_split(root=str(self.root.absolute()), split_file=str(path))


def read_class_folders(root: Path) -> Reading[Record]:
    """Read `root/<class>/` or `root/<split>/<class>/`; no split where all images lie in the root itself.

    Raises:
        ValueError: The folders cannot be understood, or there is only one class.
    """
    tree = read_tree(root)
    if not tree:
        return Reading({})
    check_class_names({name for classes in tree.values() for name in classes}, root)
    return _index_classes(
        root,
        [
            SplitRow(name, label, split)
            for split, classes in tree.items()
            for label, paths in classes.items()
            for name in _name_images(paths, root)
        ],
    )


def _index_classes(root: Path, rows: Sequence[SplitRow]) -> Reading[Record]:
    labels = sorted({row.label for row in rows})
    numbers = {label: number for number, label in enumerate(labels)}
    splits: dict[str, list[Record]] = {}
    prefix = write_prefix(root)
    for row in rows:
        record = Record(f"{prefix}{row.path.replace('/', os.sep)}", numbers[row.label], row.path)
        splits.setdefault(row.split, []).append(record)
    return Reading(splits, labels)


def _match_split_file(root: Path, split_file: Path) -> list[SplitRow]:
    """The rows of a split file, which must name the images below the root and no others."""
    rows = read_split(split_file)
    listed = {row.path for row in rows}
    present = set(_name_images(list_images(root), root))
    for names, problem, remedy in (
        (listed - present, f"listed in {split_file} but not in {root}", "delete their lines"),
        (present - listed, f"in {root} but not listed in {split_file}", "add lines for them"),
    ):
        if names:
            first = ", ".join(f"'{name}'" for name in sorted(names)[:3])
            images = "1 image is" if len(names) == 1 else f"{len(names)} images are"
            raise DataError(
                f"{images} {problem}: {first}{', ...' if len(names) > 3 else ''}. Is it the table of this folder? If "
                f"so, {remedy}, or write the table anew with FolderData.save_split()."
            )
    check_class_names({row.label for row in rows}, split_file)
    return rows


def _name_images(paths: Sequence[str], root: Path) -> list[str]:
    """Each path below the root, with forward slashes."""
    prefix = write_prefix(root)
    return [path.removeprefix(prefix).replace(os.sep, "/") for path in paths]
