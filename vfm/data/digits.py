"""Handwritten digits that come with scikit-learn: real images without a download."""

from __future__ import annotations

from typing import ClassVar, Unpack

import numpy as np

from vfm.data.base import LOADER_DEFAULTS, ImageData, LoaderOptions
from vfm.data.dataset import Record
from vfm.data.splits import SPLITS, split_by_class
from vfm.data.transforms import Augment

_FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


class DigitsData(ImageData):
    """The 1,797 digits of scikit-learn, 8 x 8 pixels each.

    Of each digit 70 % are to train, 10 % to validate and 20 % to test; `predict` answers for the test images.
    """

    # The images are in memory: processes that open them would only cost time.
    option_defaults: ClassVar[LoaderOptions] = {**LOADER_DEFAULTS, "num_workers": 0}

    def __init__(self, *, augment: Augment = "light", **options: Unpack[LoaderOptions]) -> None:
        """Make the data module.

        Args:
            augment: Augmentation of training images; a mirrored 2 is no digit, so not `standard`.
            **options: Options of every data module.
        """
        super().__init__(augment=augment, **options)

    def read(self) -> dict[str, list[Record]]:
        """All digits, as uint8 [8, 8, 3]."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.labels = tuple(str(name) for name in digits.target_names)
        # The scan's gray levels are 0 to 16.
        gray = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        images = np.repeat(gray[..., None], 3, axis=-1)
        names = [f"digit-{index:04d}" for index in range(len(images))]
        labels = [int(label) for label in digits.target]
        splits = split_by_class(names, [str(label) for label in labels], _FRACTIONS, self.seed)
        records: dict[str, list[Record]] = {split: [] for split in SPLITS}
        for image, label, name, split in zip(images, labels, names, splits, strict=True):
            records[split].append(Record(image, label, name))
        return records
