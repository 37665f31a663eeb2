"""Random crop, resized: the step that decides how finely an image must be decoded."""

import math
from dataclasses import KW_ONLY, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import OptionError

from vfm.data.decode import Source

_ATTEMPTS = 10


@dataclass(frozen=True)
class RandomCrop:
    """A crop of random area and aspect ratio, resized to a fixed size (Szegedy et al., 2015).

    Raises:
        ValueError: A range is none, or lies outside of what an image has.
    """

    size: tuple[int, int]
    """Height and width of the result in pixels."""
    cubic: bool = False
    """Whether to enlarge by cubic interpolation in place of linear."""
    _: KW_ONLY
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest fraction of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width by height."""

    def __post_init__(self) -> None:
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                limit = "" if math.isinf(most) else f", at most {most:g}"
                raise OptionError(
                    f"RandomResizedCrop's {name} is {[low, high]}. Give the least and the greatest value, above 0"
                    f"{limit}."
                )

    def __call__(self, source: Source, generator: np.random.Generator) -> NDArray[np.uint8]:
        """Crop at random and resize, uint8 [h, w, 3]; the crop does not depend on how finely the image is decoded."""
        top, left, height, width = self.draw_box(source.height, source.width, generator)
        h, w = self.size
        part = source.crop(top, left, height, width, max(h / height, w / width))
        shrink = min(part.shape[0] / h, part.shape[1] / w)
        # Down to a half, linear interpolation reads every pixel, and JPEG files are decoded to less than twice the
        # size. Beyond, of OpenCV's filters only the area one does, at several times the cost.
        kind = cv2.INTER_LINEAR if shrink <= 2 else cv2.INTER_AREA
        if shrink < 1 and self.cubic:
            kind = cv2.INTER_CUBIC
        resized: NDArray[np.uint8] = cv2.resize(part, (w, h), interpolation=kind)  # type: ignore[assignment]
        return resized

    def draw_box(
        self, height: int, width: int, generator: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of a part of an image of this height and width."""
        low, high = np.log(self.ratio)
        for _ in range(_ATTEMPTS):
            area = height * width * generator.uniform(*self.scale)
            aspect = math.exp(generator.uniform(low, high))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = int(generator.integers(height - h + 1))
                left = int(generator.integers(width - w + 1))
                return top, left, h, w
        # An image too long for the ratio: its middle, as wide as the ratio lets it be.
        w = max(1, min(width, round(height * self.ratio[1])))
        h = max(1, min(height, round(width / self.ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w
