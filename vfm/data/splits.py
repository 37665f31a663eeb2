"""Train, val and test splits that can be drawn again by hash, written to a table and read from it."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from vfm_runtime.errors import DataError, OptionError

from vfm.data.tables import read_csv, write_rows

T = TypeVar("T")
Part = TypeVar("Part", str, int)

SPLITS = ("train", "val", "test")


class SplitRow(NamedTuple):
    """A line of a split file."""

    path: str
    """Below the data's root, with forward slashes."""
    label: str
    split: str
    """`train`, `val` or `test`."""


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse fractions of the images for val and test that leave nothing to train on.

    Raises:
        ValueError: One is negative, or both together are 1 or more.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise OptionError(
            f"val_fraction is {val_fraction} and test_fraction is {test_fraction}. "
            "Give shares from 0 that leave something to train on, such as 0.1 and 0.1."
        )


def split_by_class(
    names: Sequence[str], labels: Sequence[str], fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Choose a split for every image, class by class: a stratified split.

    The choice depends on the seed, the names and the labels, not on their order. Every class has at least one image in
    every split.

    Args:
        names: Unique names of the images.
        labels: The class of each image.
        fractions: Fraction of each split, adding up to 1; splits of fraction 0 get nothing.
        seed: Seed of the draw.

    Raises:
        ValueError: The fractions do not add up, or a class has fewer images than there are splits.
    """
    wanted = _drop_empty(fractions)
    members: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    chosen = [""] * len(names)
    for label, images in sorted(members.items()):
        if len(images) < len(wanted):
            count = "1 image" if len(images) == 1 else f"{len(images)} images"
            raise DataError(
                f"Class '{label}' has {count}, too few for one each in {', '.join(wanted)}. "
                "Add images, leave the class out, or ask for fewer splits "
                "(val_fraction=0 or test_fraction=0)."
            )
        ranked = iter(sorted(images, key=lambda index: _rank(seed, names[index])))
        for split, number in _round_counts(len(images), wanted).items():
            for _ in range(number):
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
        keys: The key of each image; images of one key stay together.
        labels: The labels of each image, as indices into `names`.
        names: Names of the labels.
        fractions: Fraction of each split, adding up to 1; splits of fraction 0 get nothing.
        seed: Seed of the draw.

    Raises:
        ValueError: The fractions do not add up, or a label cannot be in every split (in the training images, where
            images have several labels).
    """
    single = all(len(of_image) == 1 for of_image in labels)
    if single and len(set(keys)) == len(keys):
        return split_by_class(keys, [names[label] for (label,) in labels], fractions, seed)
    wanted = _drop_empty(fractions)
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for key, of_image in zip(keys, labels, strict=True):
        counts[key].update(of_image)
    if single:
        _check_keys(counts, names, wanted)
    chosen = _deal_keys(counts, wanted, seed)
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

    Splits without images are left out.

    Args:
        splits: Images by split as the data states it; by "" where it states none.
        describe: Gives the key of an image, whose images stay together, and its labels as indices into `names`.
        names: Names of the labels.
        val_fraction: Fraction of the images for val, where it is drawn.
        test_fraction: Fraction of the images for test, where all splits are drawn.
        seed: Seed of the draw.

    Raises:
        ValueError: There are too few images, as for `split_by_key`.
    """
    drawn: dict[str, list[T]] = {split: [*splits.get(split, [])] for split in SPLITS}
    stated, fractions = "", {"train": 1 - val_fraction - test_fraction, "val": val_fraction}
    if "" in splits:
        fractions["test"] = test_fraction
    elif "train" in splits and "val" not in splits and val_fraction:
        stated, fractions = "train", {"train": 1 - val_fraction, "val": val_fraction}
        drawn["train"] = []
    images = splits.get(stated, [])
    if images:
        keys, labels = zip(*map(describe, images), strict=True)
        for image, split in zip(
            images, split_by_key(keys, labels, names, fractions, seed), strict=True
        ):
            drawn[split].append(image)
    return {split: images for split, images in drawn.items() if images}


def check_folds(folds: int | None, fold: int | None) -> None:
    """Refuse a number of folds, or the number of one of them, that cannot be meant.

    Raises:
        OptionError: There is one fold or none, or the fold is none of them.
    """
    if folds is None:
        if fold is not None:
            raise OptionError(
                f"fold is {fold}, but nothing says of how many. Give folds too: --data.folds 5 --data.fold {fold}."
            )
        return
    if folds < 2:
        raise OptionError(
            f"folds is {folds}. Give 2 or more, such as 5; null holds no folds out in turn."
        )
    if fold is not None and not 0 <= fold < folds:
        raise OptionError(
            f"fold is {fold}. Choices: 0 to {folds - 1}, since there are {folds} folds."
        )


def draw_folds(
    keys: Sequence[str], labels: Sequence[tuple[int, ...]], folds: int, seed: int
) -> list[int]:
    """Choose a fold for every image, from 0: stratified, never dividing a key.

    The choice depends on the seed, the keys and the labels, not on their order. A label that fewer keys have than there
    are folds is in as many folds as it can be; no fold is without images.

    Args:
        keys: The key of each image; images of one key stay together.
        labels: The labels of each image, as numbers from 0; several or none are fine.
        folds: Number of folds, at least 2.
        seed: Seed of the draw.

    Raises:
        OptionError: There is one fold.
        DataError: There are fewer keys than folds.
    """
    check_folds(folds, None)
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for key, of_image in zip(keys, labels, strict=True):
        counts[key].update(of_image)
    if len(counts) < folds:
        grouped = f" in {len(counts)} groups that stay together" * (len(counts) < len(keys))
        raise DataError(
            f"folds is {folds}, but there are only {len(keys)} images to learn from{grouped}: each fold holds at least "
            "one out. Give fewer folds (--data.folds), or more images."
        )
    if len(counts) == len(keys) and all(len(of_image) == 1 for of_image in labels):
        # In turns, class by class: what the other way comes to, in no time.
        ordered = sorted(zip(labels, keys, strict=True), key=lambda p: (p[0], _rank(seed, p[1])))
        chosen = {key: turn % folds for turn, (_, key) in enumerate(ordered)}
    else:
        chosen = _deal_keys(counts, dict.fromkeys(range(folds), 1 / folds), seed)
    return [chosen[key] for key in keys]


def _deal_keys(
    counts: Mapping[str, Counter[int]], fractions: Mapping[Part, float], seed: int
) -> dict[str, Part]:
    """A split, or a fold, for each key."""
    total: Counter[int] = Counter()
    holders: dict[int, list[str]] = defaultdict(list)
    # The largest first, while each split has room for it; then by hash, so that the table's order does not matter.
    for key in sorted(counts, key=lambda key: (-counts[key].total(), _rank(seed, key))):
        total.update(counts[key])
        for label in counts[key]:
            holders[label].append(key)
    lack = {
        split: {label: fraction * count for label, count in total.items()}
        | {-1: fraction * len(counts)}
        for split, fraction in fractions.items()
    }
    chosen: dict[str, Part] = {}
    for label in [*sorted(holders, key=lambda label: (len(holders[label]), label)), -1]:
        members = holders[label] if label >= 0 else [*counts]
        waiting = [key for key in members if key not in chosen]
        without = set(fractions) - {chosen[key] for key in members if key in chosen}
        for left, key in zip(range(len(waiting), 0, -1), waiting, strict=True):
            # The last ones go to the splits that have none, so that every split has each label where there are enough.
            open_to = without if label >= 0 and 0 < left <= len(without) else set(fractions)
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
    write_rows(Path(path), SplitRow._fields, [row._asdict() for row in sorted(rows)])


def read_split(path: str | Path) -> list[SplitRow]:
    """Read what `write_split` wrote.

    Raises:
        ValueError: The file is missing, has other columns or splits, or lists an image twice.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no split file {path}. Write one with FolderData.save_split().")
    table = read_csv(path)
    for column in SplitRow._fields:
        table.require(column, "a split file has the columns path, label, split")
    rows: dict[str, SplitRow] = {}
    for index, cells in enumerate(table.rows):
        row = SplitRow(cells["path"], cells["label"], cells["split"])
        if row.split not in SPLITS:
            raise DataError(
                f"{table.where(index)}: split is '{row.split}'. Choices: {', '.join(SPLITS)}."
            )
        if row.path in rows:
            raise DataError(
                f"{table.where(index)}: '{row.path}' is listed twice. Keep one line for each image."
            )
        rows[row.path] = row
    return list(rows.values())


def _drop_empty(fractions: Mapping[str, float]) -> dict[str, float]:
    """The splits that get images, of fractions that add up to 1."""
    total = sum(fractions.values())
    if min(fractions.values()) < 0 or not math.isclose(total, 1, abs_tol=1e-9):
        listed = ", ".join(f"{split} {fraction:g}" for split, fraction in fractions.items())
        raise DataError(
            f"The shares of the splits are {listed}. Give numbers from 0 that add up to 1."
        )
    return {split: fraction for split, fraction in fractions.items() if fraction > 0}


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _round_counts(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers nearest to the fractions of a total, each at least 1, adding up to the total."""
    # Rounded first: 0.7 * 10 is 7.000000000000001 or less, as it happens.
    exact = {split: round(total * fraction, 9) for split, fraction in fractions.items()}
    counts = {split: max(1, math.floor(value)) for split, value in exact.items()}
    while sum(counts.values()) < total:
        counts[max(counts, key=lambda split: exact[split] - counts[split])] += 1
    while sum(counts.values()) > total:
        ample = [split for split in counts if counts[split] > 1]
        counts[min(ample, key=lambda split: exact[split] - counts[split])] -= 1
    return counts
