"""Coloured shapes, made to order: for tests, examples and a first run without data."""

import colorsys
from collections.abc import Callable, Sequence
from typing import ClassVar, Unpack

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import OptionError

from vfm.data.base import ImageData
from vfm.data.options import LOADER_DEFAULTS, LoaderOptions
from vfm.data.records import Record
from vfm.data.splits import SPLITS
from vfm.data.transforms import Augment

_Grid = NDArray[np.float64]
_SHAPES: tuple[Callable[[_Grid, _Grid], NDArray[np.bool_]], ...] = (
    lambda y, x: x**2 + y**2 < 1,
    lambda y, x: np.maximum(abs(x), abs(y)) < 0.85,
    lambda y, x: (abs(x) < (y + 1) / 2) & (y < 0.9),
    lambda y, x: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1),
)


class SyntheticData(ImageData):
    """Coloured shapes on a grey, noisy ground.

    Half are to train, a quarter each to validate and to test; `predict` answers for the test
    images.
    """

    can_balance = True
    # The images are in memory: processes that open them would only cost time.
    option_defaults: ClassVar[LoaderOptions] = {
        **LOADER_DEFAULTS,
        "batch_size": 32,
        "num_workers": 0,
    }

    def __init__(
        self,
        *,
        num_classes: int = 4,
        num_images: int = 64,
        image_size: int = 32,
        augment: Augment = "auto",
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Make the data module.

        Args:
            num_classes: Number of classes, each with a shape and a colour.
            num_images: Images of all classes and splits together.
            image_size: Height and width in pixels.
            augment: Augmentation of training images, as for `ImageData`.
            **options: Options of every data module.

        Raises:
            ValueError: There is less than one image for each class and split, or a number is too small.
        """
        super().__init__(augment=augment, **options)
        if num_classes < 2:
            raise OptionError(f"num_classes is {num_classes}. Give 2 or more.")
        if image_size < 8:
            raise OptionError(f"image_size is {image_size}. Give 8 pixels or more.")
        if num_images < len(SPLITS) * num_classes:
            raise OptionError(
                f"num_images is {num_images}, too few for {num_classes} classes. Give "
                f"{len(SPLITS) * num_classes} or more: one for each class and split."
            )
        self.num_classes = num_classes
        self.num_images = num_images
        self.image_size = image_size

    def read(self) -> dict[str, list[Record]]:
        """Draw all images, uint8 [image_size, image_size, 3]."""
        self.labels = tuple(name_classes(self.num_classes))
        size = (self.image_size, self.image_size)
        records = []
        for index in range(self.num_images):
            label = index % self.num_classes
            image = draw_shape(label, self.num_classes, size, (self.seed, index))
            records.append(Record(image, label, f"shape-{index:05d}"))
        return self._complete_splits({"": records}, val_fraction=0.25, test_fraction=0.25)


def draw_shape(
    label: int, num_classes: int, size: tuple[int, int], key: Sequence[int]
) -> NDArray[np.uint8]:
    """Draw one image of a class, uint8 [H, W, 3].

    Args:
        label: Class; its shape and hue follow.
        num_classes: Number of classes that share the hues.
        size: Height and width in pixels.
        key: Numbers from 0; the same ones give the same image.
    """
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
    height, width = size
    radius = random.uniform(0.25, 0.4) * min(size)
    center_y = random.uniform(0.4, 0.6) * height
    center_x = random.uniform(0.4, 0.6) * width
    inside = draw_mask(label, size, (center_y, center_x), radius)
    image = np.full((height, width, 3), random.uniform(60, 200))
    image[inside] = compute_color(label, num_classes, random.uniform(0.7, 1.0))
    image += random.normal(0, 8, image.shape)
    pixels: NDArray[np.uint8] = np.rint(image).clip(0, 255).astype(np.uint8)
    return pixels


def draw_mask(
    label: int, size: tuple[int, int], center: tuple[float, float], radius: float
) -> NDArray[np.bool_]:
    """Where the shape of a class lies, bool [H, W].

    Args:
        label: Class; its shape follows.
        size: Height and width in pixels.
        center: Row and column of the shape's middle.
        radius: Half of its height and width at most, in pixels.
    """
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    return _SHAPES[label % len(_SHAPES)]((y - center[0]) / radius, (x - center[1]) / radius)


def compute_color(label: int, num_classes: int, brightness: float) -> NDArray[np.float64]:
    """Red, green and blue of a class, 0..255, at a brightness of 0..1."""
    return np.array(colorsys.hsv_to_rgb(label / num_classes, 0.9, brightness)) * 255


def name_classes(num_classes: int) -> list[str]:
    """Names whose order in the alphabet is that of the numbers."""
    digits = len(str(num_classes - 1))
    return [f"class_{label:0{digits}d}" for label in range(num_classes)]
