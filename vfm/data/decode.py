"""Decoding of training images: JPEG files no larger than the augmentation needs them."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.media.image import SIDEWAYS, open_image, read_orientation, turn_upright

Pixels = NDArray[np.uint8]

_JPEG = b"\xff\xd8\xff"
_COLORS = {"YCbCr", "Gray", "RGB"}
# The decoder computes halves of a side in vector instructions; factors between them take longer than the next half.
_FACTORS = (8, 4, 2)


@dataclass(frozen=True)
class Source:
    """An image of known size whose pixels are decoded when it is known how finely they are needed."""

    height: int
    """Height of the upright image, in pixels."""
    width: int
    """Width of the upright image, in pixels."""
    _whole: Pixels | None = None
    _jpeg: bytes = b""
    _orientation: int = 1

    @classmethod
    def open(cls, source: str | bytes | Pixels, value_range: ValueRange | None = None) -> Source:
        """Read what `open_image` takes, and decode it at once unless it is a JPEG file.

        Args:
            source: Path of a file, its bytes or an array.
            value_range: Black and white of values of more than 8 bits.

        Raises:
            ImageError: It cannot be opened.
        """
        jpeg = None if isinstance(source, np.ndarray) else cls._open_jpeg(source)
        if jpeg is not None:
            return jpeg
        whole = open_image(source, value_range=value_range)
        return cls(whole.shape[0], whole.shape[1], whole)

    def decode(self, scale: float = 1.0) -> Pixels:
        """Decode the image, uint8 [h, w, 3], upright.

        Args:
            scale: Least fraction of each side that is needed; h and w are `height` and `width` times a power of two
                that is not smaller, at most 1.

        Raises:
            ImageError: It is damaged.
        """
        if self._whole is not None:
            return self._whole
        height, width = self.height, self.width
        if self._orientation in SIDEWAYS:
            height, width = width, height
        factor = next((f for f in _FACTORS if f * scale <= 1), 1)
        try:
            # The faster of two ways of rounding and of enlarging the colours: below what augmentation changes.
            pixels: Pixels = simplejpeg.decode_jpeg(
                self._jpeg,
                "RGB",
                fastdct=True,
                fastupsample=True,
                min_height=-(-height // factor),
                min_width=-(-width // factor),
            )
        except ValueError:
            # Pillow is asked for the last word on damaged files, as it is in evaluation.
            return open_image(self._jpeg)
        if self._orientation == 1:
            return pixels
        return np.array(turn_upright(Image.fromarray(pixels), self._orientation))

    def crop(self, top: float, left: float, height: float, width: float, scale: float) -> Pixels:
        """Decode a part of the upright image, given in its pixels; uint8 [h, w, 3], at least 1 x 1.

        Raises:
            ImageError: The image is damaged.
        """
        image = self.decode(scale)
        y, x = image.shape[0] / self.height, image.shape[1] / self.width
        first_row, first_column = round(top * y), round(left * x)
        rows = slice(first_row, max(first_row + 1, round((top + height) * y)))
        columns = slice(first_column, max(first_column + 1, round((left + width) * x)))
        return image[rows, columns]

    @classmethod
    def _open_jpeg(cls, source: str | bytes) -> Source | None:
        """None for everything that `open_image` should look at: other formats, rare modes, damage."""
        try:
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
            if not data.startswith(_JPEG):
                return None
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            if colors not in _COLORS or height * width > (Image.MAX_IMAGE_PIXELS or 0):
                return None
            # By the reader of evaluation, wherever the file says it: in EXIF or in XMP, behind other segments too.
            with Image.open(io.BytesIO(data)) as image:
                orientation = read_orientation(
                    image, source if isinstance(source, str) else "JPEG file"
                )
        except (OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error):
            return None
        if orientation in SIDEWAYS:
            height, width = width, height
        return cls(height, width, None, data, orientation)
