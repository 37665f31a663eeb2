"""Packed records: the images of a large split in two arrays, so that data workers share the memory of the list."""

import mmap
import pickle
from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from vfm.data.dataset import ImageDataset
from vfm.data.records import Record

FEW = 10_000
"""Records below which packing is not worth its time."""

DatasetT = TypeVar("DatasetT", bound=ImageDataset)


class PackedRecords(Sequence[Record]):
    """Records of one class as bytes in one array, made anew when they are asked for.

    A forked worker that looks at a Python object counts the reference, which copies its page of memory: a million
    records would be copied in an epoch, once in each worker. Spawned workers map a temporary file, which lasts as long
    as the object that was packed: Python hands over what it pickles by a pipe, and would start a worker only after the
    one before it has imported everything and emptied the pipe.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        """Pack records."""
        self._class = type(records[0])
        read_values = attrgetter(*(field.name for field in fields(self._class)))
        rows = [pickle.dumps(values, 5) for values in map(read_values, records)]
        self._ends: NDArray[np.int64] = np.cumsum([len(row) for row in rows], dtype=np.int64)
        self._content: NDArray[np.uint8] = np.frombuffer(b"".join(rows), np.uint8)
        self._folder: TemporaryDirectory[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        if self._folder is None:
            # Windows does not delete files that a worker maps.
            folder = TemporaryDirectory(prefix="vfm-records-", ignore_cleanup_errors=True)
            for name, array in (("ends", self._ends), ("content", self._content)):
                np.save(Path(folder.name, name), array)
            self._folder = folder
        return {"_class": self._class, "_folder": self._folder.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._class, self._folder = state["_class"], None
        self._ends, self._content = (
            np.load(Path(state["_folder"], f"{name}.npy"), mmap_mode="r")
            for name in ("ends", "content")
        )
        self._content[
            :: mmap.PAGESIZE
        ].max()  # maps every page now, so that memory does not grow over the epoch

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]  # negative ones count from the end; others are refused
        start = self._ends[position - 1] if position else 0
        # Bytes that this process wrote itself, before its workers were started.
        values: tuple[Any, ...] = pickle.loads(
            self._content[start : self._ends[position]].tobytes()
        )
        return self._class(*values)


def pack_dataset(
    dataset: DatasetT, split: str, packed: dict[str, tuple[Sequence[Record], PackedRecords]]
) -> DatasetT:
    """Pack the records of a large data set; images in memory stay, since workers share arrays anyway.

    Args:
        dataset: Data set that data workers will read.
        split: Name of its split.
        packed: By split, the records that were packed before, and what became of them.
    """
    records = dataset.records
    if len(records) < FEW or isinstance(records[0].source, np.ndarray):
        return dataset
    if any(record.objects is not None and record.objects.tile is not None for record in records):
        return dataset  # a tile holds the boxes of its photo, and each would be packed with all of them
    if split not in packed or packed[split][0] is not records:
        packed[split] = (records, PackedRecords(records))
    dataset.records = packed[split][1]
    return dataset
