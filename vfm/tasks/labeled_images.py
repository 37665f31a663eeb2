"""Labelled images of a data module: chosen from its splits, opened once, and kept at the model's size."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import VfmError
from vfm_runtime.tasks.base import Arrays

from vfm.data import ImageData
from vfm.data.auto import choose_evaluation_splits
from vfm.data.dataset import Skipped
from vfm.data.detection.tiles import group_tiles
from vfm.data.records import Record, describe_content
from vfm.preprocess import Preprocess

MAX_IMAGES = 2000
"""Most images that are kept in memory, spread evenly over the data."""

log = logging.getLogger(__name__)


class ValidationError(VfmError, ValueError):
    """There are no images to validate an export on; the message says why and what to do."""


@dataclass(frozen=True)
class LabeledImages:
    """Images of a data module with their truth, not yet opened."""

    data: ImageData
    """Where they come from; its labels are known."""
    positions: Sequence[tuple[str, int]]
    """Split of each image, and its index there."""

    @classmethod
    def select_splits(cls, data: ImageData, names: Sequence[str]) -> Self:
        """Select all images of some splits, in order, of a data module that has read its records."""
        return cls(data, [(name, i) for name in names for i in range(len(data.records[name]))])

    @classmethod
    def select_evaluation(cls, data: ImageData, path: Path) -> Self:
        """Select the val split where the data states one, else all that have labels; warnings name the path."""
        return cls.select_splits(data, choose_evaluation_splits(data, path))

    @property
    def records(self) -> list[Record]:
        """The record of each image."""
        return [self.data.records[split][index] for split, index in self.positions]

    @property
    def fingerprint(self) -> str:
        """A sha256 of the images' names, labels and contents, wherever they lie; files count by their size."""
        rows = sorted(f"{r.name}\t{r.label}\t{describe_content(r)}" for r in self.records)
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def select(self, indices: Collection[int]) -> Self:
        """Select the images at some indices of `positions`."""
        return replace(self, positions=[self.positions[i] for i in indices])

    def limit(self, count: int) -> Self:
        """Select at most `count` of the images, spread evenly; of photos in tiles all tiles, of one at least."""
        total = len(self.positions)
        if total <= count:
            return self
        photos = [indices for _, indices in group_tiles(self.records)]
        chosen = [
            photos[i] for i in _select_evenly(len(photos), max(1, count * len(photos) // total))
        ]
        while len(chosen) > 1 and sum(map(len, chosen)) > count:
            chosen.pop()
        log.warning("Of %d images %d are taken, spread evenly.", len(photos), len(chosen))
        return self.select([index for indices in chosen for index in indices])


@dataclass(frozen=True)
class OpenedImages:
    """Opened images, at the model's size. N images."""

    inputs: Arrays
    """`pixels`, uint8 [N, h, w, 3]; for a head that needs it also `geometry`, float32 [N, 6]."""
    source: LabeledImages
    """What they show: the record of each."""

    def iterate_batches(self, size: int, count: int | None = None) -> Iterator[Arrays]:
        """Yield what the model takes, batch by batch in the order of the images.

        Args:
            size: Most images of a batch.
            count: Most images, spread evenly; all by default.
        """
        inputs, total = self.inputs, len(self.inputs["pixels"])
        if count is not None and count < total:
            chosen = _select_evenly(total, count)
            inputs = {name: values[chosen] for name, values in inputs.items()}
            total = count
        for start in range(0, total, size):
            yield {name: values[start : start + size] for name, values in inputs.items()}


def _select_evenly(total: int, count: int) -> NDArray[np.int64]:
    """Return `count` of `total` indices, evenly."""
    return np.linspace(0, total - 1, count).round().astype(int)


def open_images(
    source: LabeledImages,
    preprocess: Preprocess,
    *,
    needs_geometry: bool,
    max_images: int = MAX_IMAGES,
) -> OpenedImages:
    """Open at most `max_images` once, as validation in training does, and keep them as the model takes them.

    Raises:
        ValidationError: None can be read.
    """
    source = source.limit(max_images)
    total = len(source.positions)
    source.data.preprocess = preprocess
    datasets = {
        split: source.data.build_dataset(split) for split in {s for s, _ in source.positions}
    }
    pixels = np.empty((total, *preprocess.size, 3), np.uint8)
    geometry = np.empty((total, 6), np.float32)
    read: list[int] = []
    skipped: dict[str, str] = {}
    # Opening and resizing leave Python's lock alone, and threads need no copy of the data.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        samples: Iterator[Any] = pool.map(lambda p: datasets[p[0]][p[1]], source.positions)
        for index, sample in enumerate(samples):
            if isinstance(sample, Skipped):
                skipped[sample.name] = sample.reason
                continue
            pixels[len(read)] = sample.image
            if needs_geometry:
                geometry[len(read)] = sample.geometry
            read.append(index)
    if skipped:
        name, reason = next(iter(skipped.items()))
        text = f"{len(skipped)} of the {total} images cannot be read, such as {name}: {reason}"
        if not read:
            raise ValidationError(f"{text} Give others with --data.")
        log.warning("%s They are left out.", text)
    inputs: Arrays = {"pixels": pixels[: len(read)]}
    if needs_geometry:
        inputs["geometry"] = geometry[: len(read)]
    return OpenedImages(inputs, source.select(read))
