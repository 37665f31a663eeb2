"""CSV: a row for each box, as `image_path,xmin,ymin,xmax,ymax,label`."""

from collections.abc import Iterable, Sequence
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
    splits = {SPLIT_FOLDERS[p.stem.lower()]: p for p in tables if p.stem.lower() in SPLIT_FOLDERS}
    if not splits and len(tables) == 1:
        return {"": tables[0]}
    return splits


def read_tables(root: Path) -> Reading[AnnotatedImage]:
    """Read every split; a row without numbers is an image without objects.

    Args:
        root: Folder of the data, or one table; paths start from the table's folder.

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
        for image_split, image in _read_images(read_table(path), split):
            splits.setdefault(image_split, []).append(image)
    return Reading(splits)


def _read_images(table: Table, split: str) -> Iterable[tuple[str, AnnotatedImage]]:
    """The images of a table, each with its split."""
    for column in COLUMNS:
        table.require(column, "boxes")
    splits = [split] * len(table.rows)
    if _SPLIT in table.columns:
        splits = table.read_splits(_SPLIT, "boxes")
    images: dict[str, tuple[str, AnnotatedImage]] = {}
    for index, (row, own_split) in enumerate(zip(table.rows, splits, strict=True)):
        name = row["image_path"].strip()
        where = table.where(index)
        if not name:
            raise BoxError(f"{where}: image_path is empty.")
        path = table.path.parent / name
        image = AnnotatedImage(path, name_below(path, table.path.parent), [], None, where)
        first_split, image = images.setdefault(name, (own_split, image))
        if first_split != own_split:
            raise BoxError(
                f"'{name}' is in {first_split} and in {own_split} ({where}): what is trained on would be tested on. "
                "Give all its rows one split."
            )
        cells = [row[column].strip() for column in COLUMNS[1:]]
        if any(cells):
            image.boxes.append(_read_box(cells, where))
    return images.values()


def _read_box(cells: Sequence[str], where: str) -> Box:
    try:
        left, top, right, bottom = (float(cell) for cell in cells[:4])
    except ValueError as error:
        raise BoxError(
            f"{where}: the box is '{', '.join(cells[:4])}'; expected four numbers, or all empty for an image without "
            "objects."
        ) from error
    if not cells[4]:
        raise BoxError(f"{where}: the box has no label.")
    return Box(left, top, right, bottom, cells[4])
