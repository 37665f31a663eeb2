"""Generated scenes with exact boxes: for tests, examples and a first run without data."""

from typing import ClassVar, Unpack

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import OptionError

from vfm.data.detection.annotation import Annotation
from vfm.data.detection.base import BoxData
from vfm.data.detection.dataset import BoxAugment
from vfm.data.options import LOADER_DEFAULTS, LoaderOptions
from vfm.data.records import Record
from vfm.data.splits import SPLITS
from vfm.data.synthetic import compute_color, draw_mask, name_classes

_GROUND, _NOISE = 128, 20
_ATTEMPTS = 20


class SyntheticScenes(BoxData):
    """Coloured shapes on a grey, noisy ground, with their boxes.

    Half of the scenes are to train, a quarter each to validate and to test; `predict` answers for the test scenes.
    """

    # The images are in memory: processes that open them would only cost time.
    option_defaults: ClassVar[LoaderOptions] = {
        **LOADER_DEFAULTS,
        "batch_size": 8,
        "num_workers": 0,
    }

    def __init__(
        self,
        *,
        num_classes: int = 3,
        num_images: int = 64,
        image_size: int = 128,
        max_objects: int = 4,
        augment: BoxAugment = BoxAugment(),
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Make the data module.

        Args:
            num_classes: Number of classes, each with a shape and a colour.
            num_images: Images of all splits together, at least 4.
            image_size: Height and width in pixels, 32 or more.
            max_objects: Most shapes in a scene; there may be none.
            augment: Augmentation of training images.
            **options: Options of every data module.

        Raises:
            ValueError: A number is too small.
        """
        super().__init__(augment=augment, **options)
        self.num_classes = num_classes
        self.num_images = num_images
        self.image_size = image_size
        self.max_objects = max_objects
        least = {"num_classes": 1, "num_images": 4, "image_size": 32, "max_objects": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise OptionError(f"{name} is {getattr(self, name)}. Give {number} or more.")

    def read(self) -> dict[str, list[Record]]:
        """Draw all scenes."""
        self.labels = tuple(name_classes(self.num_classes))
        half, quarter = (round(fraction * self.num_images) for fraction in (0.5, 0.25))
        records: dict[str, list[Record]] = {split: [] for split in SPLITS}
        for index in range(self.num_images):
            split = SPLITS[(index >= half) + (index >= half + quarter)]
            pixels, labels, annotation = draw_scene(
                self.image_size, self.num_classes, self.max_objects, (self.seed, index)
            )
            records[split].append(Record(pixels, labels, f"scene-{index:05d}", objects=annotation))
        return records


def draw_scene(
    side: int, num_classes: int, max_objects: int, key: tuple[int, ...]
) -> tuple[NDArray[np.uint8], tuple[int, ...], Annotation]:
    """Shapes at random places that do not overlap.

    Args:
        side: Height and width in pixels.
        num_classes: Number of classes that share the hues.
        max_objects: Most shapes; one scene in ten has none.
        key: Numbers from 0; the same ones give the same scene.

    Returns:
        uint8 [side, side, 3], the class of each shape, and the boxes.
    """
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([7, *key])))
    image = random.normal(_GROUND, _NOISE, (side, side, 3)).clip(0, 255).astype(np.uint8)
    number = 0 if key[-1] % 10 == 9 else int(random.integers(1, max_objects + 1))
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(_ATTEMPTS * number):
        if len(boxes) == number:
            break
        size = int(random.integers(side // 6, side // 3))
        left, top = (int(random.integers(side - size)) for _ in range(2))
        right, bottom = left + size, top + size
        if any(left < r and x < right and top < b and y < bottom for x, y, r, b in boxes):
            continue
        label = int(random.integers(num_classes))
        inside = draw_mask(label, (size, size), ((size - 1) / 2,) * 2, size / 2)
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        color = compute_color(label, num_classes, random.uniform(0.7, 1.0))
        image[top:bottom, left:right][inside] = color
        boxes.append((left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1))
        labels.append(label)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return image, tuple(labels), Annotation(corners, np.zeros(len(boxes), bool), (side, side))
