"""Base of the data modules with boxes, wherever they come from."""

import math
from abc import ABC
from itertools import chain
from pathlib import Path
from typing import Unpack

import numpy as np
from vfm_runtime.tasks.tiling import Tiling

from vfm.data.base import ImageData
from vfm.data.detection.annotation import Annotation, read_image_header
from vfm.data.detection.dataset import BoxAugment, BoxDataset, collate_boxes
from vfm.data.detection.tiles import cut_record, group_tiles
from vfm.data.options import LoaderOptions
from vfm.data.records import Record, list_labels
from vfm.data.sampler import compute_repeat_factors


class BoxData(ImageData, ABC):
    """Images with boxes, in splits.

    A subclass implements `read`: records whose `label` lists the class of each of their `objects`.
    """

    auto_batch_sizes = (8, 16)
    collate = staticmethod(collate_boxes)
    num_views = None
    repeat_threshold: float = 0.0
    """Fraction of the images below which a class is rare, and its images come more often."""

    def __init__(self, *, augment: BoxAugment, **options: Unpack[LoaderOptions]) -> None:
        """Make the data module; nothing is read yet.

        Args:
            augment: Augmentation of training images.
            **options: Options of every data module.
        """
        super().__init__(augment="none", **options)
        self.box_augment = augment
        self._cut_by: dict[str, Tiling | None] = {}

    def _cut_records(self) -> None:
        """Cut the photos of all splits into the tiles of the preprocessing, or else of the data."""
        tiling = self.tiling_in_use
        for split, records in self.records.items():
            if self._cut_by.get(split) == tiling:
                continue
            parts = (_cut_photo(photo, tiling) for photo, _ in group_tiles(records))
            self.records[split] = [*chain.from_iterable(parts)]
            self._cut_by[split] = tiling

    def count_files(self, split: str) -> int:
        """Count the photos of a split, each once, however many tiles it has."""
        return len(group_tiles(self.records.get(split, [])))

    def build_dataset(self, split: str) -> BoxDataset:
        """A split's images with their boxes, in order and without augmentation."""
        return BoxDataset(self._get_records(split), self._require_preprocess())

    def _build_training_dataset(self) -> BoxDataset:
        records = self._get_records("train")
        dataset = BoxDataset(
            records,
            self._require_preprocess(),
            seed=self.seed,
            augment=self.box_augment,
            calm_from=self._find_calm_epoch(len(records)),
        )
        if self.repeat_threshold:
            labels = [list_labels(record) for record in records]
            dataset.weights = compute_repeat_factors(
                labels, len(self.labels), self.repeat_threshold
            )
        return dataset

    def _find_calm_epoch(self, num_images: int) -> float:
        """The epoch from which the end of the training goes on without mosaic."""
        if self.trainer is None:
            return math.inf
        fraction = 1 - self.box_augment.close_mosaic
        if self.trainer.max_steps == -1:
            return fraction * (self.trainer.max_epochs or math.inf)
        images_a_step = self.batch_size * self.trainer.world_size
        images_a_step *= self.trainer.accumulate_grad_batches
        return fraction * self.trainer.max_steps * images_a_step / num_images


def _cut_photo(record: Record, tiling: Tiling | None) -> list[Record]:
    """Return the tiles of a photo; the photo itself where it stays whole, or its file cannot be read."""
    annotation, source = record.objects, record.source
    if annotation is None:
        if isinstance(source, np.ndarray):
            size = source.shape[0], source.shape[1]
        elif isinstance(source, str) and (header := read_image_header(Path(source))):
            size = header.size
        else:
            return [record]
        annotation = Annotation(np.zeros((0, 4), np.float32), np.zeros(0, bool), size)
    return cut_record(record, annotation, tiling)
