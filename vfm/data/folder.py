"""Images in folders named by class."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vfm_runtime.errors import DataError, OptionError

from vfm.data.base import ImageData
from vfm.data.class_folders import check_class_names, list_images, read_tree
from vfm.data.dataset import Record, list_labels
from vfm.data.layouts import Reading
from vfm.data.splits import SPLITS, SplitRow, complete_splits, read_split, write_split
from vfm.data.transforms import Augment
from vfm.spec import Spec

SPLIT_FILE = "splits.csv"


class FolderData(ImageData):
    """Images in `root/<class>/` or `root/<split>/<class>/`.

    Without split folders, validation and test images are drawn class by class; with a `train`
    folder but none for validation, validation images are drawn from it. Split folders are `train`,
    `val` (or `valid`, `validation`) and `test`. Folders inside a class folder are fine, hidden ones
    are ignored.

    `predict` answers for every image below `root`, whatever the folders.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_file: str | Path | None = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        augment: Augment = "standard",
        seed: int = 0,
    ) -> None:
        """Make the data module; the folder is read by `setup`.

        Args:
            root: The folder.
            val_fraction: Share of the images for validation, where there is no folder for it.
            test_fraction: Share of the images for the test, where there are no split folders.
            split_file: Table with the columns path, label and split, as `save_split` writes it;
                used in place of folder names and fractions.
            batch_size: Images in a batch, on each process.
            num_workers: Processes that open images, for each training process; by default one less
                than its share of the cores, at most 8.
            augment: Augmentation of training images, as for `ImageData`.
            seed: Of order, augmentation and splits.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, augment=augment, seed=seed)
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise OptionError(
                f"val_fraction is {val_fraction} and test_fraction is {test_fraction}. "
                "Give shares from 0 that leave something to train on, such as 0.1 and 0.1."
            )
        self.root = Path(root)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_file = Path(split_file) if split_file is not None else None

    def read(self) -> dict[str, list[Record]]:
        """Find the images of each split; only `predict` where there are no class folders."""
        if self.split_file is not None:
            reading = _collect(self.root, _listed(self.root, self.split_file))
            splits = reading.splits
        else:
            reading = read_class_folders(self.root)
            splits = complete_splits(
                reading.splits,
                lambda record: (record.name, list_labels(record)),
                reading.labels or (),
                val_fraction=self.val_fraction,
                test_fraction=self.test_fraction,
                seed=self.seed,
            )
        if not splits:
            return {"predict": self.read_predict()}
        self.labels = tuple(reading.labels or ())
        return {
            split: sorted(splits[split], key=lambda record: record.name)
            for split in SPLITS
            if splits.get(split)
        }

    def read_predict(self) -> list[Record]:
        """Every image below the root, without labels."""
        images = list_images(self.root)
        return [Record(str(path), -1, _name(path, self.root)) for path in images]

    def remedy(self, split: str) -> str:
        """What to do about a missing split."""
        at_root = f"{self.root}/{split}/<class>/"
        if self.split_file is not None:
            return f"Add lines with split '{split}' to {self.split_file}."
        if split == "val":
            return (
                f"Put images in {at_root} or set val_fraction above 0; "
                "to train without validation, set limit_val_batches=0 in the trainer."
            )
        if split == "test":
            return f"Put images in {at_root}; without split folders, set test_fraction above 0."
        return f"Put images in {self.root}/<class>/ or {at_root}."

    def save_split(self, path: str | Path) -> None:
        """Write which image is in which split, for `split_file`.

        Args:
            path: Of the table; written anew.
        """
        self._read_once()
        write_split(
            path,
            (
                SplitRow(record.name, self.labels[list_labels(record)[0]], split)
                for split in SPLITS
                for record in self.records.get(split, [])
            ),
        )

    def keep_split(self, folder: Path) -> Spec:
        """Write `splits.csv`, since later files would shift a split that is drawn again.

        Args:
            folder: Of the training run.
        """
        path = folder.absolute() / SPLIT_FILE
        self.save_split(path)
        spec = self.spec
        # Where it lies now: a relative root would be another folder tomorrow.
        spec["init_args"] |= {"root": str(self.root.absolute()), "split_file": str(path)}
        return spec


def read_class_folders(root: Path) -> Reading[Record]:
    """Read `root/<class>/` or `root/<split>/<class>/`; no split where all images lie in the root itself.

    Args:
        root: The folder.

    Raises:
        ValueError: The folders cannot be understood, or there is only one class.
    """
    tree = read_tree(root)
    if not tree:
        return Reading({})
    check_class_names({name for classes in tree.values() for name in classes}, root)
    return _collect(
        root,
        (
            SplitRow(_name(path, root), label, split)
            for split, classes in tree.items()
            for label, paths in classes.items()
            for path in paths
        ),
    )


def _collect(root: Path, rows: Iterable[SplitRow]) -> Reading[Record]:
    rows = list(rows)
    labels = sorted({row.label for row in rows})
    number = {label: index for index, label in enumerate(labels)}
    splits: dict[str, list[Record]] = {}
    for row in rows:
        record = Record(str(root / row.path), number[row.label], row.path)
        splits.setdefault(row.split, []).append(record)
    return Reading(splits, labels)


def _listed(root: Path, split_file: Path) -> list[SplitRow]:
    rows = read_split(split_file)
    listed = {row.path for row in rows}
    found = {_name(path, root) for path in list_images(root)}
    _check_equal(listed - found, f"listed in {split_file} but not in {root}", "delete their lines")
    _check_equal(found - listed, f"in {root} but not listed in {split_file}", "add lines for them")
    check_class_names({row.label for row in rows}, split_file)
    return rows


def _check_equal(difference: set[str], what: str, remedy: str) -> None:
    if difference:
        first = ", ".join(f"'{name}'" for name in sorted(difference)[:3])
        count = len(difference)
        images = "1 image is" if count == 1 else f"{count} images are"
        raise DataError(
            f"{images} {what}: {first}"
            f"{', ...' if count > 3 else ''}. Is it the table of this folder? If so, {remedy}, or "
            "write the table anew with FolderData.save_split()."
        )


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
