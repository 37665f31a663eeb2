"""Splits that can be made again: drawn by hash, written to and read from a table."""

from __future__ import annotations

import csv
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "val", "test")
_COLUMNS = ["path", "label", "split"]


class SplitRow(NamedTuple):
    """A line of a split file."""

    path: str
    """Below the data's root, with forward slashes."""
    label: str
    split: str
    """`train`, `val` or `test`."""


def stratified_split(
    names: Sequence[str], labels: Sequence[str], fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Choose a split for every image, class by class.

    The choice depends on the seed, the names and the labels, not on their order. Every class has at
    least one image in every split.

    Args:
        names: Unique names of the images.
        labels: Class of each.
        fractions: Share of each split, adding up to 1; splits of share 0 get nothing.
        seed: Of the draw.

    Returns:
        The split of each image.

    Raises:
        ValueError: The fractions do not add up, or a class has fewer images than there are splits.
    """
    wanted = _checked(fractions)
    members: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    chosen = [""] * len(names)
    for label in sorted(members):
        _check_class(label, len(members[label]), wanted)
        ranked = iter(sorted(members[label], key=lambda index: _rank(seed, names[index])))
        for split, count in _counts(len(members[label]), wanted).items():
            for _ in range(count):
                chosen[next(ranked)] = split
    return chosen


def write_split(path: str | Path, rows: Iterable[SplitRow]) -> None:
    """Write a split as a table with the columns path, label and split."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(sorted(rows))


def read_split(path: str | Path) -> list[SplitRow]:
    """Read what `write_split` wrote.

    Raises:
        ValueError: The file is missing, has other columns or splits, or lists an image twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no split file {path}. Write one with FolderData.save_split().")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        missing = [column for column in _COLUMNS if column not in columns]
        if missing:
            raise ValueError(
                f"{path} has no column '{missing[0]}'. Columns: {', '.join(columns) or 'none'}. "
                f"A split file has the columns {', '.join(_COLUMNS)}."
            )
        rows = [SplitRow(*(row[column] or "" for column in _COLUMNS)) for row in reader]
    _check_rows(path, rows)
    return rows


def _check_rows(path: Path, rows: Sequence[SplitRow]) -> None:
    seen: set[str] = set()
    for line, row in enumerate(rows, start=2):
        if row.split not in SPLITS:
            raise ValueError(
                f"{path}, line {line}: split is '{row.split}'. Choices: {', '.join(SPLITS)}."
            )
        if row.path in seen:
            raise ValueError(
                f"{path}, line {line}: '{row.path}' is listed twice. Keep one line for each image."
            )
        seen.add(row.path)


def _checked(fractions: Mapping[str, float]) -> dict[str, float]:
    total = sum(fractions.values())
    if min(fractions.values()) < 0 or not math.isclose(total, 1, abs_tol=1e-9):
        given = ", ".join(f"{split} {share:g}" for split, share in fractions.items())
        raise ValueError(
            f"The shares of the splits are {given}. Give numbers from 0 that add up to 1."
        )
    return {split: share for split, share in fractions.items() if share > 0}


def _check_class(label: str, count: int, fractions: Mapping[str, float]) -> None:
    if count < len(fractions):
        images = "1 image" if count == 1 else f"{count} images"
        raise ValueError(
            f"Class '{label}' has {images}, too few for one each in {', '.join(fractions)}. "
            "Add images, leave the class out, or ask for fewer splits "
            "(val_fraction=0 or test_fraction=0)."
        )


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _counts(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers nearest to the shares, each at least 1, adding up to the total."""
    # Rounded first: 0.7 * 10 is 7.000000000000001 or less, as it happens.
    exact = {split: round(total * share, 9) for split, share in fractions.items()}
    counts = {split: max(1, math.floor(value)) for split, value in exact.items()}
    while sum(counts.values()) < total:
        counts[max(counts, key=lambda split: exact[split] - counts[split])] += 1
    while sum(counts.values()) > total:
        ample = [split for split in counts if counts[split] > 1]
        counts[min(ample, key=lambda split: exact[split] - counts[split])] -= 1
    return counts
