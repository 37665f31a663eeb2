"""Labelled images of `vfm tune`: all that may be learned from, and their folds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import DataError, OptionError

from vfm.data import ImageData
from vfm.data.auto import LABEL_LAYOUTS, SelectedData, draw_indices, open_data
from vfm.data.records import Record, list_labels
from vfm.data.splits import draw_folds

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabeledPool:
    """Images to learn from, N of them, with what they have in common."""

    data: ImageData
    """The data module they come from, all of whose labelled images but those of the test are in its train split."""
    indices: list[int]
    """Index of each image in that split."""
    keys: list[str]
    """Key of each image: those of one key, exact copies among them, are never divided."""

    @property
    def records(self) -> list[Record]:
        """The record of each image."""
        train = self.data.records["train"]
        return [train[i] for i in self.indices]

    @property
    def target(self) -> NDArray[np.int64]:
        """True classes, [N]; or [N, C] of zeros and ones where several labels may apply."""
        labels = [list_labels(record) for record in self.records]
        if not self.data.multilabel:
            return np.array([of_image[0] for of_image in labels])
        target = np.zeros((len(labels), len(self.data.labels)), np.int64)
        for row, of_image in zip(target, labels, strict=True):
            row[list(of_image)] = 1
        return target

    def draw_folds(self, folds: int, seed: int) -> NDArray[np.int64]:
        """Draw a fold for each image, [N]: stratified by label, no key divided."""
        labels = [tuple(sorted(list_labels(record))) for record in self.records]
        return np.array(draw_folds(self.keys, labels, folds, seed))

    def keep_only(self, positions: Sequence[int]) -> Self:
        """Return the pool of some of its images."""
        indices, keys = self.indices, self.keys
        return replace(
            self, indices=[indices[i] for i in positions], keys=[keys[i] for i in positions]
        )

    def select(
        self, train: Iterable[int], predict: Iterable[int] = (), **options: object
    ) -> SelectedData:
        """Return a data module that learns from some images and answers for others, by their indices in the pool."""
        positions = [[self.indices[i] for i in part] for part in (train, predict)]
        return SelectedData(self.data, *positions, seed=self.data.seed, **options)  # type: ignore[arg-type]


def open_pool(
    path: Path,
    *,
    num_images: int,
    seed: int,
    label_column: str | None = None,
    label_separator: str | None = None,
    key_column: str | None = None,
    bit_depth: int | None = None,
) -> LabeledPool:
    """Open the labelled images of a folder or table that may be learned from: all but a test split that it states.

    A val split is learned from too: cross-validation judges, and it wastes no images.

    Args:
        path: Folder of class folders, table of images, or folder of IDX files.
        num_images: Most images of the pool; of more, as many of each class are drawn.
        seed: Seed of the draw.
        label_column: Column of the labels of a table; several with commas between are one for each label.
        label_separator: Text between the labels of a cell.
        key_column: Column of keys, whose images are never divided.
        bit_depth: Bits that the values of images of 16 or 32 bits use; None for all.

    Raises:
        OptionError: A column is named, but the data is no table.
        DataError: There is only one class, fewer than two images, or one group of images that stay together.
    """
    name = LABEL_LAYOUTS.detect(path)
    several = label_column is not None and "," in label_column
    columns = {
        "label_column": label_column.split(",") if label_column and several else label_column,
        "label_separator": label_separator,
        "key_column": key_column,
    }
    options: dict[str, Any] = {k: value for k, value in columns.items() if value is not None}
    if options and name != "table":
        raise OptionError(
            f"--{next(iter(options))} names a column of a table, but {path} is a folder. Give a table of the images, "
            "or leave the option out."
        )
    fractions = dict.fromkeys(LABEL_LAYOUTS.layouts[name].fractions, 0.0)
    data = open_data(path, seed=seed, bit_depth=bit_depth, **fractions, **options)
    data.setup("fit")
    data.records["train"] = data.records["train"] + data.records.pop("val", [])
    images = data.records["train"]
    learned = {label for record in images for label in list_labels(record)}
    if len(images) < 2 or (len(learned) < 2 and not data.multilabel):
        names = ", ".join(f"'{data.labels[label]}'" for label in sorted(learned))
        raise DataError(
            f"{path} has {len(images)} images of {len(learned)} class{'es' * (len(learned) != 1)}: {names or 'none'}. "
            "Give images of two classes or more, such as those to be told apart from it."
        )
    indices = list(range(len(images)))
    if len(images) > num_images:
        indices = draw_indices(images, num_images, seed)
        log.warning(
            "Of the %d labelled images %d are taken, as evenly over the classes as they go (--num-images).",
            *(len(images), num_images),
        )
    drawn = [images[i] for i in indices]
    counts = Counter(label for record in drawn for label in list_labels(record))
    if single := [data.labels[label] for label, count in sorted(counts.items()) if count == 1]:
        log.warning(
            "%d of %d classes have one image, such as '%s'. Where it is held out the class cannot be known, so each "
            "counts as a mistake; the finished model learns from it.",
            *(len(single), len(data.labels), single[0]),
        )
    keys = [record.key or record.name for record in drawn]
    if len(set(keys)) < 2:
        raise DataError(
            f"All {len(keys)} images of {path} belong together, as '{keys[0]}', so that none can be held out to judge "
            "by. Give images of two groups or more, or leave the column of keys out."
        )
    return LabeledPool(data, indices, keys)
