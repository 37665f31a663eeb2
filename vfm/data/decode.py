"""Opens images for training: JPEG files no larger than the augmentation needs them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from vfm_runtime.media.image import open_image

Pixels = NDArray[np.uint8]

_JPEG = b"\xff\xd8\xff"
_COLOURS = {"YCbCr", "Gray", "RGB"}
_ORIENTATION = 0x0112
# By EXIF orientation: how stored pixels become upright ones; 1 is upright already.
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
_SIDEWAYS = (5, 6, 7, 8)
# The decoder computes halves of a side in vector instructions; factors between them take longer than the next half.
_FACTORS = (8, 4, 2)


@dataclass(frozen=True)
class Source:
    """An image of known size whose pixels are decoded when it is known how finely they are needed."""

    height: int
    """Of the upright image, in pixels."""
    width: int
    _whole: Pixels | None = None
    _jpeg: bytes = b""
    _orientation: int = 1

    @classmethod
    def open(cls, source: str | bytes | Pixels) -> Source:
        """Read a file, and decode it at once unless it is a JPEG.

        Args:
            source: As for `vfm_runtime.media.image.open_image`.

        Raises:
            ImageError: It cannot be opened.
        """
        jpeg = None if isinstance(source, np.ndarray) else cls._from_jpeg(source)
        return jpeg or cls._from_pixels(source)

    def pixels(self, scale: float = 1.0) -> Pixels:
        """Decode the image, uint8 [h, w, 3], upright.

        Args:
            scale: Least share of each side that is needed; h and w are `height` and `width` times
                a power of two that is not smaller, at most 1.

        Raises:
            ImageError: It is damaged.
        """
        if self._whole is not None:
            return self._whole
        factor = next((f for f in _FACTORS if f * scale <= 1), 1)
        least = {
            "min_height": -(-self._stored[0] // factor),
            "min_width": -(-self._stored[1] // factor),
        }
        try:
            # The faster of two ways of rounding and of enlarging the colours: below what augmentation changes.
            image: Pixels = simplejpeg.decode_jpeg(
                self._jpeg, "RGB", fastdct=True, fastupsample=True, **least
            )
        except ValueError:
            # Pillow is asked for the last word on damaged files, as it is in evaluation.
            return open_image(self._jpeg)
        turn = _TURNS.get(self._orientation)
        return image if turn is None else turn(image)

    @property
    def _stored(self) -> tuple[int, int]:
        sideways = self._orientation in _SIDEWAYS
        return (self.width, self.height) if sideways else (self.height, self.width)

    @classmethod
    def _from_pixels(cls, source: str | bytes | Pixels) -> Source:
        whole = open_image(source)
        return cls(whole.shape[0], whole.shape[1], whole)

    @classmethod
    def _from_jpeg(cls, source: str | bytes) -> Source | None:
        """None for everything that `open_image` should look at: other formats, rare modes, damage."""
        try:
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
            if not data.startswith(_JPEG):
                return None
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            orientation = _exif_orientation(data)
        except (OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error):
            return None
        if colours not in _COLOURS or height * width > (Image.MAX_IMAGE_PIXELS or 0):
            return None
        if orientation in _SIDEWAYS:
            height, width = width, height
        return cls(height, width, None, data, orientation)


def _exif_orientation(data: bytes) -> int:
    if data.find(b"Exif", 0, 65536) < 0:
        return 1
    with Image.open(io.BytesIO(data)) as image:
        value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) else 1
