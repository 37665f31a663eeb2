"""CSV: a row for each box, as `image_path,xmin,ymin,xmax,ymax,label`."""

from __future__ import annotations

from pathlib import Path

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.detection.annotation import AnnotatedImage, Box, BoxError, name_below
from vfm.data.layouts import Reading
from vfm.data.tables import Table, read_table

COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")
_SPLIT = "split"


def find_tables(root: Path) -> dict[str, Path]:
    """The table of each split, or of ""; none where there is no CSV."""
    if root.is_file():
        return {"": root} if root.suffix in (".csv", ".tsv", ".parquet") else {}
    tables = sorted(root.glob("*.csv"))
    found = {SPLIT_FOLDERS[p.stem.lower()]: p for p in tables if p.stem.lower() in SPLIT_FOLDERS}
    if found:
        return found
    return {"": tables[0]} if len(tables) == 1 else {}


def read_tables(root: Path) -> Reading[AnnotatedImage]:
    """Read every split; a row without numbers is an image without objects.

    Args:
        root: The folder of the data, or one table; paths start from the table's folder.

    Raises:
        BoxError: A row is no box.
    """
    tables = find_tables(root)
    if not tables:
        raise BoxError(
            f"{root} has no table of boxes: one .csv, or train.csv, val.csv and test.csv, with the columns "
            f"{', '.join(COLUMNS)}."
        )
    splits: dict[str, list[AnnotatedImage]] = {}
    for split, path in tables.items():
        for name, scenes in _read(read_table(path), split).items():
            splits.setdefault(name, []).extend(scenes)
    return Reading(splits)


def _read(table: Table, split: str) -> dict[str, list[AnnotatedImage]]:
    for column in COLUMNS:
        table.require(column, "boxes")
    found: dict[str, dict[str, AnnotatedImage]] = {}
    places: dict[str, str] = {}
    for index, row in enumerate(table.rows):
        own = _split(table, index) if _SPLIT in table.columns else split
        name = row["image_path"].strip()
        if not name:
            raise BoxError(f"{table.where(index)}: image_path is empty.")
        if places.setdefault(name, own) != own:
            raise BoxError(
                f"'{name}' is in {places[name]} and in {own} ({table.where(index)}): what is trained on would be "
                "tested on. Give all its rows one split."
            )
        path = table.path.parent / name
        scene = AnnotatedImage(
            path, name_below(path, table.path.parent), [], None, table.where(index)
        )
        scene = found.setdefault(own, {}).setdefault(name, scene)
        if any(row[column].strip() for column in COLUMNS[1:]):
            scene.boxes.append(_box(table, index))
    return {name: list(scenes.values()) for name, scenes in found.items()}


def _split(table: Table, index: int) -> str:
    given = table.rows[index][_SPLIT].strip().lower()
    if given not in SPLIT_FOLDERS:
        raise BoxError(f"{table.where(index)}: the split is '{given}'. Choices: train, val, test.")
    return SPLIT_FOLDERS[given]


def _box(table: Table, index: int) -> Box:
    row = table.rows[index]
    try:
        left, top, right, bottom = (float(row[column]) for column in COLUMNS[1:5])
    except ValueError as error:
        cells = ", ".join(row[column] for column in COLUMNS[1:5])
        raise BoxError(
            f"{table.where(index)}: the box is '{cells}'; expected four numbers, or all empty for an image without "
            "objects."
        ) from error
    label = row["label"].strip()
    if not label:
        raise BoxError(f"{table.where(index)}: the box has no label.")
    return Box(left, top, right, bottom, label)
