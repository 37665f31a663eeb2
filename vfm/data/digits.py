"""Handwritten digits that come with scikit-learn: real images without a download."""

from typing import ClassVar, Unpack

import numpy as np

from vfm.data.base import ImageData
from vfm.data.options import LOADER_DEFAULTS, LoaderOptions
from vfm.data.records import Record
from vfm.data.transforms import Augment


class DigitsData(ImageData):
    """The 1,797 digits of scikit-learn, 8 x 8 pixels each.

    Of each digit 70 % are to train, 10 % to validate and 20 % to test; `predict` answers for the test images.
    """

    can_balance = True
    # A mirrored 2 is no digit.
    default_augment: ClassVar[Augment] = "light"
    # The images are in memory: processes that open them would only cost time.
    option_defaults: ClassVar[LoaderOptions] = {
        **LOADER_DEFAULTS,
        "batch_size": 32,
        "num_workers": 0,
    }

    def __init__(self, *, augment: Augment = "auto", **options: Unpack[LoaderOptions]) -> None:
        """Make the data module.

        Args:
            augment: Augmentation of training images, as for `ImageData`.
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
        records = [
            Record(image, int(label), f"digit-{index:04d}")
            for index, (image, label) in enumerate(zip(images, digits.target, strict=True))
        ]
        return self._complete_splits({"": records}, val_fraction=0.1, test_fraction=0.2)
