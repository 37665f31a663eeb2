"""Splits that can be made again: drawn by hash, written to and read from a table."""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from vfm_runtime.errors import DataError

T = TypeVar("T")

SPLITS = ("train", "val", "test")
_COLUMNS = ["path", "label", "split"]


class SplitRow(NamedTuple):
    """A line of a split file."""

    path: str
    """Below the data's root, with forward slashes."""
    label: str
    split: str
    """`train`, `val` or `test`."""


def split_by_class(
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


def split_by_key(
    keys: Sequence[str],
    labels: Sequence[tuple[int, ...]],
    names: Sequence[str],
    fractions: Mapping[str, float],
    seed: int,
) -> list[str]:
    """Choose a split for every image, never dividing a key, with labels spread as evenly as that allows.

    Iterative stratification: the rarest label is dealt out first, each key to the split that lacks it most (Sechidis et
    al., 2011). Where every image has a key and one label of its own it is `split_by_class`.

    Args:
        keys: Of each image; images of one key stay together.
        labels: The labels of each image, as indices into `names`.
        names: Of the labels.
        fractions: Share of each split, adding up to 1; splits of share 0 get nothing.
        seed: Of the draw.

    Returns:
        The split of each image.

    Raises:
        ValueError: The fractions do not add up, or a label cannot be in every split (in the training images, where
            images have several labels).
    """
    single = all(len(found) == 1 for found in labels)
    if single and len(set(keys)) == len(keys):
        return split_by_class(keys, [names[found[0]] for found in labels], fractions, seed)
    wanted = _checked(fractions)
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for key, found in zip(keys, labels, strict=True):
        counts[key].update(found)
    if single:
        _check_keys(counts, names, wanted)
    chosen = _dealt(counts, wanted, seed)
    learned = {label for key, split in chosen.items() if split == "train" for label in counts[key]}
    missing = sorted({label for count in counts.values() for label in count} - learned)
    if missing:
        raise DataError(
            f"No training image has the label '{names[missing[0]]}': its images go with others to {', '.join(wanted)}. "
            "Add images of it, or write the splits into the table."
        )
    return [chosen[key] for key in keys]


def complete_splits(
    splits: Mapping[str, list[T]],
    describe: Callable[[T], tuple[str, tuple[int, ...]]],
    names: Sequence[str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, list[T]]:
    """Draw the splits that data does not state: all where it states none, val from train where only that is missing.

    Args:
        splits: Images by split as the data states it; by "" where it states none.
        describe: Gives the key of an image, whose images stay together, and its labels as indices into `names`.
        names: Label names.
        val_fraction: Fraction of the images for val, where it is drawn.
        test_fraction: Fraction of the images for test, where all splits are drawn.
        seed: Seed of the draw.

    Raises:
        ValueError: There are too few images, as for `split_by_key`.
    """
    if "" in splits:
        undrawn, fractions = "", {"train": 1 - val_fraction - test_fraction, "val": val_fraction}
        fractions["test"] = test_fraction
    elif "train" in splits and "val" not in splits and val_fraction:
        undrawn, fractions = "train", {"train": 1 - val_fraction, "val": val_fraction}
    else:
        return dict(splits)
    described = [describe(image) for image in splits[undrawn]]
    keys, labels = [key for key, _ in described], [numbers for _, numbers in described]
    chosen = split_by_key(keys, labels, names, fractions, seed)
    drawn: dict[str, list[T]] = {split: [] for split in fractions}
    for image, split in zip(splits[undrawn], chosen, strict=True):
        drawn[split].append(image)
    return {split: images for split, images in splits.items() if split} | drawn


def _dealt(
    counts: Mapping[str, Counter[int]], fractions: Mapping[str, float], seed: int
) -> dict[str, str]:
    """A split for each key."""
    total: Counter[int] = Counter()
    holders: dict[int, list[str]] = defaultdict(list)
    # The largest first, while each split has room for it; then by hash, so that the table's order does not matter.
    for key in sorted(counts, key=lambda key: (-counts[key].total(), _rank(seed, key))):
        total.update(counts[key])
        for label in counts[key]:
            holders[label].append(key)
    size = len(counts)
    lack = {
        split: {label: share * count for label, count in total.items()} | {-1: share * size}
        for split, share in fractions.items()
    }
    chosen: dict[str, str] = {}
    for label in [*sorted(holders, key=lambda label: (len(holders[label]), label)), -1]:
        members = holders[label] if label >= 0 else [*counts]
        waiting = [key for key in members if key not in chosen]
        without = set(fractions) - {chosen[key] for key in members if key in chosen}
        for left, key in zip(range(len(waiting), 0, -1), waiting, strict=True):
            # The last ones go to the splits that have none, so that every split has each label where there are enough.
            open_to = without if label >= 0 and 0 < left <= len(without) else fractions
            split = max(sorted(open_to), key=lambda s: (lack[s][label], lack[s][-1]))
            chosen[key] = split
            without.discard(split)
            for other, count in counts[key].items():
                lack[split][other] -= count
            lack[split][-1] -= 1
    return chosen


def _check_keys(
    counts: Mapping[str, Counter[int]], names: Sequence[str], fractions: Mapping[str, float]
) -> None:
    holders = Counter(label for count in counts.values() for label in count)
    for label, number in sorted(holders.items()):
        if number < len(fractions):
            keys = "1 key" if number == 1 else f"{number} keys"
            raise DataError(
                f"The images of class '{names[label]}' have {keys}, too few for one each in {', '.join(fractions)}. "
                "Add images of other keys, leave the class out, or ask for fewer splits "
                "(val_fraction=0 or test_fraction=0)."
            )


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
        raise DataError(f"There is no split file {path}. Write one with FolderData.save_split().")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        missing = [column for column in _COLUMNS if column not in columns]
        if missing:
            raise DataError(
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
            raise DataError(
                f"{path}, line {line}: split is '{row.split}'. Choices: {', '.join(SPLITS)}."
            )
        if row.path in seen:
            raise DataError(
                f"{path}, line {line}: '{row.path}' is listed twice. Keep one line for each image."
            )
        seen.add(row.path)


def _checked(fractions: Mapping[str, float]) -> dict[str, float]:
    total = sum(fractions.values())
    if min(fractions.values()) < 0 or not math.isclose(total, 1, abs_tol=1e-9):
        given = ", ".join(f"{split} {share:g}" for split, share in fractions.items())
        raise DataError(
            f"The shares of the splits are {given}. Give numbers from 0 that add up to 1."
        )
    return {split: share for split, share in fractions.items() if share > 0}


def _check_class(label: str, count: int, fractions: Mapping[str, float]) -> None:
    if count < len(fractions):
        images = "1 image" if count == 1 else f"{count} images"
        raise DataError(
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
