"""Which data module reads what a path names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vfm.data.base import ImageData
from vfm.data.dataset import Record, labels_of
from vfm.data.folder import FolderData
from vfm.data.idx import IdxData
from vfm.data.table import TableData
from vfm.spec import Spec

_TABLES = (".csv", ".tsv", ".parquet")


class SourceError(ValueError):
    """A path names no data."""


def data_of(path: str | Path, **arguments: Any) -> ImageData:
    """A data module for a folder of class folders, a table, or a folder of IDX files.

    Args:
        path: The folder or file.
        **arguments: Of every data module: batch_size, num_workers, augment, seed.

    Raises:
        SourceError: There is nothing at the path, or a file of another kind.
    """
    path = Path(path)
    if path.is_dir():
        if any(path.glob("*-idx3-ubyte*")):
            return IdxData(path, **arguments)
        return FolderData(path, **arguments)
    if path.is_file() and path.suffix in _TABLES:
        return TableData(path, **arguments)
    found = "is a file of another kind" if path.is_file() else "does not exist"
    raise SourceError(
        f"{path} {found}. Give a folder of class folders (my_images/cat/1.jpg), a table "
        f"({', '.join(_TABLES)}), or a folder of IDX files."
    )


class SampledData(ImageData):
    """A part of other data: some training and validation images of every class, drawn once."""

    def __init__(
        self,
        data: ImageData,
        *,
        num_train: int,
        num_val: int,
        batch_size: int = 32,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        """Make the data module.

        Args:
            data: What to draw from.
            num_train: Most training images.
            num_val: Most validation images.
            batch_size: Images in a batch, on each process.
            num_workers: Processes that open images, as for `ImageData`.
            seed: Of the draw and the order.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, augment="none", seed=seed)
        self.data = data
        self.num_images: Mapping[str, int] = {"train": num_train, "val": num_val}

    def read(self) -> dict[str, list[Record]]:
        """Draw from the other data."""
        self.data.setup("fit")
        self.data.setup("validate")
        self.labels, self.multilabel = self.data.labels, self.data.multilabel
        return {
            split: draw(self.data.records[split], number, self.seed)
            for split, number in self.num_images.items()
        }

    def keep_split(self, folder: Path) -> Spec:
        """The draw follows from the seed."""
        return self.spec


def draw(records: Sequence[Record], number: int, seed: int) -> list[Record]:
    """Some of the images, as evenly over the classes as there are images of them; in their old order.

    Args:
        records: To draw from.
        number: Most images.
        seed: Of the draw.
    """
    if number >= len(records):
        return list(records)
    order = np.random.default_rng(seed).permutation(len(records)).tolist()
    by_class: dict[int, list[int]] = {}
    for i in order:
        first = min(labels_of(records[i]), default=-1)
        by_class.setdefault(first, []).append(i)
    chosen: list[int] = []
    turn = 0
    while len(chosen) < number:
        round_ = [places[turn] for _, places in sorted(by_class.items()) if turn < len(places)]
        chosen += round_[: number - len(chosen)]
        turn += 1
    return [records[i] for i in sorted(chosen)]
