"""Handwritten digits that come with scikit-learn: real images without a download."""

from __future__ import annotations

import numpy as np

from vfm.data.base import ImageData
from vfm.data.dataset import Record
from vfm.data.splits import SPLITS, split_by_class
from vfm.data.transforms import Augment

_FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


class DigitsData(ImageData):
    """The 1,797 digits of scikit-learn, 8 x 8 pixels each.

    Of each digit 70 % are to train, 10 % to validate and 20 % to test; `predict` answers for the
    test images.
    """

    def __init__(
        self,
        *,
        batch_size: int = 32,
        num_workers: int | None = 0,
        augment: Augment = "light",
        seed: int = 0,
    ) -> None:
        """Make the data module.

        Args:
            batch_size: Images in a batch, on each process.
            num_workers: Processes that prepare images; these are in memory and need none.
            augment: Augmentation of training images; a mirrored 2 is no digit, so not `standard`.
            seed: Of order, augmentation and splits.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, augment=augment, seed=seed)

    def read(self) -> dict[str, list[Record]]:
        """All digits, as uint8 [8, 8, 3]."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.labels = tuple(str(name) for name in digits.target_names)
        # The scan's grey levels are 0 to 16.
        grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        images = np.repeat(grey[..., None], 3, axis=-1)
        names = [f"digit-{index:04d}" for index in range(len(images))]
        labels = [int(label) for label in digits.target]
        splits = split_by_class(names, [str(label) for label in labels], _FRACTIONS, self.seed)
        records: dict[str, list[Record]] = {split: [] for split in SPLITS}
        for image, label, name, split in zip(images, labels, names, splits, strict=True):
            records[split].append(Record(image, label, name))
        return records

    def read_predict(self) -> list[Record]:
        """The test images."""
        self._read_once()
        return self.records["test"]
