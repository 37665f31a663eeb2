"""Base of the data modules with boxes, wherever they come from."""

import math
from abc import ABC
from typing import Unpack

from vfm.data.base import ImageData, LoaderOptions
from vfm.data.detection.dataset import BoxAugment, BoxDataset, collate_boxes


class BoxData(ImageData, ABC):
    """Images with boxes, in splits.

    A subclass implements `read`: records whose `label` lists the class of each of their `objects`.
    """

    collate = staticmethod(collate_boxes)

    def __init__(self, *, augment: BoxAugment, **options: Unpack[LoaderOptions]) -> None:
        """Make the data module; nothing is read yet.

        Args:
            augment: Augmentation of training images.
            **options: Options of every data module.
        """
        super().__init__(augment="none", **options)
        self.box_augment = augment

    def build_dataset(self, split: str) -> BoxDataset:
        """A split's images with their boxes, in order and without augmentation."""
        return BoxDataset(self._get_records(split), self._require_preprocess())

    def _build_training_dataset(self) -> BoxDataset:
        records = self._get_records("train")
        return BoxDataset(
            records,
            self._require_preprocess(),
            seed=self.seed,
            augment=self.box_augment,
            calm_from=self._find_calm_epoch(len(records)),
        )

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
