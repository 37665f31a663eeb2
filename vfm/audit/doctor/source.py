"""Source of `vfm doctor`: labelled images of a folder or table, by the layout that training reads it in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import DataError

from vfm.data.auto import LABEL_LAYOUTS, is_of_boxes
from vfm.data.base import ImageData
from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.detection.auto import BOX_LAYOUTS, DetectionData
from vfm.data.detection.clean import Fix
from vfm.data.folder import FolderData
from vfm.data.idx import IdxData
from vfm.data.records import Record, list_labels
from vfm.data.splits import SPLITS
from vfm.data.table import TableData
from vfm.data.table_rows import find_table, join_path, read_names
from vfm.data.tables import read_table

_DRAWN: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}


@dataclass(frozen=True)
class DoctorSource:
    """N images of a data set, each once."""

    path: Path
    format: str
    """Layout that they were read in."""
    records: list[Record]
    splits: list[str]
    """Split of each image; empty where the data states none."""
    labels: tuple[str, ...] = ()
    """Class names; none where nothing is labelled."""
    multilabel: bool = False
    keys: list[str] = field(default_factory=list)
    """Key of each image, of `--key`; none where no column was named."""
    fixes: list[Fix] = field(default_factory=list)
    """Boxes that were not taken as they stand."""
    notes: list[str] = field(default_factory=list)
    """What reading the data warned of."""

    @cached_property
    def has_boxes(self) -> bool:
        """Whether objects are marked by boxes."""
        return any(record.objects is not None for record in self.records)

    @cached_property
    def target(self) -> NDArray[np.int64]:
        """Class of each image, [N], -1 where it is not known; of several labels zeros and ones, [N, C]."""
        if not self.multilabel and not self.has_boxes:
            return np.array([min(list_labels(r), default=-1) for r in self.records], np.int64)
        target = np.zeros((len(self.records), len(self.labels)), np.int64)
        for row, record in zip(target, self.records, strict=True):
            row[list(list_labels(record))] = 1
        return target

    def describe_labels(self, index: int) -> str:
        """The labels of an image in words."""
        names = [self.labels[label] for label in dict.fromkeys(list_labels(self.records[index]))]
        return ", ".join(names)


def open_source(
    path: Path,
    *,
    path_column: str = "path",
    label_column: str = "label",
    label_separator: str | None = None,
    key: str | None = None,
) -> DoctorSource:
    """Read the images of a folder or a table with the labels or boxes that they have, and the splits that are stated.

    Args:
        path: Folder of class folders, of IDX files, of images alone or with boxes in any format; or a table.
        path_column: Column of a table with the paths of the images.
        label_column: Column of a table with their labels; without it, they have none.
        label_separator: Text between the labels of a cell, where several, or none, may apply to an image.
        key: Column of a table with what must not be divided by a split, such as a patient.

    Raises:
        DataError: There is no such path, it is no table that an option is for, or it has no such column.
        ValueError: The data cannot be understood.
    """
    if not path.exists():
        raise DataError(
            f"There is no file or folder {path} (looked in {Path.cwd()}). Check the path."
        )
    is_boxes = is_of_boxes(path)
    for option, value, what in (
        ("--key", key, "a column of a table of images"),
        (
            "--label-separator",
            label_separator,
            "what stands between the labels in a table of images",
        ),
    ):
        if value is not None and (is_boxes or not find_table(path)):
            raise DataError(
                f"{option} is '{value}', {what}, but {path} is no such table. Give a .csv, .tsv or .parquet file with "
                f"the columns path and label, or leave {option} out."
            )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if is_boxes:
            source = _take_module(path, BOX_LAYOUTS.detect(path), DetectionData(path, **_DRAWN))
        elif find_table(path):
            source = _open_table(path, path_column, label_column, label_separator, key)
        else:
            layout = LABEL_LAYOUTS.detect(path)
            module = (
                IdxData(path, val_fraction=0.0) if layout == "idx" else FolderData(path, **_DRAWN)
            )
            source = _take_module(path, layout, module)
    source.notes.extend(dict.fromkeys(str(one.message) for one in caught))
    return source


def _take_module(path: Path, layout: str, data: ImageData, key: str | None = None) -> DoctorSource:
    data.setup()
    pairs = [(split, r) for split in (*SPLITS, "predict") for r in data.records.get(split, [])]
    stated = len({split for split, _ in pairs}) > 1
    return DoctorSource(
        path,
        layout,
        [record for _, record in pairs],
        [split if stated else "" for split, _ in pairs],
        tuple(data.labels),
        data.multilabel,
        [record.groups[0] for _, record in pairs] if key is not None else [],
        list(getattr(data, "fixes", [])),
    )


def _open_table(
    path: Path,
    path_column: str,
    label_column: str,
    label_separator: str | None,
    key: str | None,
) -> DoctorSource:
    table = read_table(path)
    if key is not None:
        table.require(key, "--key")
    if label_column in table.columns:
        options: dict[str, Any] = {"path_column": path_column, "label_column": label_column}
        options |= {"group_columns": [key] if key is not None else []}
        if label_separator is not None:
            options |= {"label_separator": label_separator, "allow_no_label": True}
        module = TableData(path, **options, **_DRAWN)
        return _take_module(path, "table", module, key)
    names = read_names(table, path_column, path.parent)
    records = [Record(join_path(path.parent, name), -1, name) for name in names]
    splits = [""] * len(names)
    if "split" in table.columns:
        splits = [SPLIT_FOLDERS.get(row["split"].strip().lower(), "") for row in table.rows]
    keys = [row[key] for row in table.rows] if key is not None else []
    return DoctorSource(path, "table without labels", records, splits, keys=keys)


def choose_evenly(labels: Sequence[int], most: int, seed: int) -> list[int]:
    """Return indices of at most `most` images, drawn class by class in turns, in their old order."""
    if len(labels) <= most:
        return list(range(len(labels)))
    order = np.random.default_rng(seed).permutation(len(labels))
    classes = np.asarray(labels)[order]
    ranks = np.zeros(len(labels), np.int64)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        ranks[members] = np.arange(len(members))
    chosen = order[np.argsort(ranks, kind="stable")[:most]]
    return sorted(chosen.tolist())
