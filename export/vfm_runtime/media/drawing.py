"""Drawing: boxes with captions on a picture, with Pillow alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

PALETTE = (
    *("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080"),
    *("#9a6324", "#808000", "#000075", "#f032e6", "#e6a000", "#469990"),
)
"""Colors of classes, in turn."""

_LEAST_SIDE, _FONT_SHARE = 10, 45


def draw_boxes(
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    *,
    captions: Sequence[str] = (),
    colors: Sequence[str],
) -> NDArray[np.uint8]:
    """Draw rectangles, and captions on them; lines and letters grow with the picture.

    Args:
        image: uint8 [H, W, 3]; it is left as it is.
        boxes: float [M, 4], left, top, right, bottom in pixels.
        captions: Caption of each box; empty for none.
        colors: Color of each box, such as `#e6194b`.
    """
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    size = max(_LEAST_SIDE, max(picture.size) // _FONT_SHARE)
    font = ImageFont.load_default(size)
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    for index, (left, top, right, bottom) in enumerate(corners.tolist()):
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        pen.rectangle((left, top, right, bottom), outline=colors[index], width=max(1, size // 6))
        if captions and captions[index]:
            _write(pen, captions[index], (left, top), picture.width, colors[index], font)
    return np.asarray(picture)


def shrink(image: NDArray[np.uint8], max_side: int | None) -> tuple[NDArray[np.uint8], float]:
    """Make an image smaller where a side is too long, and tell by what factor its coordinates shrink.

    Args:
        image: uint8 [H, W, 3].
        max_side: Longest side in pixels; None for any, and then the factor is 1.
    """
    height, width = image.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return image, 1.0
    scale = max_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)), scale


def _write(
    pen: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    limit: int,
    color: str,
    font: object,
) -> None:
    """Write a caption above the box's upper left corner; inside, or further left, where there is no room."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)  # type: ignore[arg-type]
    height, width = bottom - top + 4, right - left + 6
    x, y = max(0.0, min(corner[0], limit - width)), corner[1]
    y = y - height if y >= height else y
    pen.rectangle((x, y, x + width, y + height), fill=color)
    pen.text((x + 3 - left, y + 2 - top), text, fill="white", font=font)  # type: ignore[arg-type]
