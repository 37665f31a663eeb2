"""What every data module with boxes does, wherever they come from."""

from __future__ import annotations

import math
from abc import ABC

from vfm.data.base import ImageData
from vfm.data.detection.dataset import BoxAugment, BoxDataset, collate_boxes


class BoxData(ImageData, ABC):
    """Images with boxes, in splits.

    A subclass implements `read`: records whose `label` lists the class of each of their `objects`.
    """

    collate = staticmethod(collate_boxes)

    def __init__(
        self,
        *,
        augment: BoxAugment,
        batch_size: int,
        num_workers: int | None,
        seed: int,
    ) -> None:
        """Make the data module; nothing is read yet.

        Args:
            augment: Augmentation of training images.
            batch_size: Images in a batch, on each process.
            num_workers: Processes that open images, as for `ImageData`.
            seed: Of order, augmentation and splits.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, augment="none", seed=seed)
        self.box_augment = augment

    def _build_dataset(self, split: str) -> BoxDataset:
        return BoxDataset(self._split(split), self._preprocess())

    def _build_training_dataset(self) -> BoxDataset:
        records = self._split("train")
        calm = self._calm_from(len(records))
        return BoxDataset(records, self._preprocess(), self.box_augment, self.seed, calm)

    def _calm_from(self, num_images: int) -> float:
        """The epoch from which the end of the training goes on without mosaic."""
        if self.trainer is None:
            return math.inf
        share = 1 - self.box_augment.calm
        if self.trainer.max_steps != -1:
            _, world = self._place()
            a_step = self.batch_size * world * self.trainer.accumulate_grad_batches
            return share * self.trainer.max_steps * a_step / num_images
        return share * (self.trainer.max_epochs or math.inf)
