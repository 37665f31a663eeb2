"""A contact sheet: many small images with captions in one PNG."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

_GAP = 10
_FRAME = 3
_FONT_SIZE = 11
_LINE_HEIGHT = 15
_INK = "#1b1f24"
_EMPTY = "#eceff2"
_RIGHT = "#1a9850"
_WRONG = "#d73027"


def draw_contact_sheet(
    images: Sequence[npt.NDArray[np.uint8]],
    captions: Sequence[str],
    *,
    columns: int = 6,
    cell: int = 128,
    marks: Sequence[bool] | None = None,
) -> bytes:
    """Draw images in a grid with captions below them, as PNG bytes.

    Small images are enlarged by a whole factor without smoothing, so that every pixel stays visible; large ones are
    shrunk. Captions wider than a cell are shortened; a newline in a caption starts another line.

    Args:
        images: uint8 [H, W, C] with 1 (grey), 3 (RGB) or 4 (RGBA) channels, of any size.
        captions: A caption for each image.
        columns: Number of images in a row.
        cell: Side of the square an image is fitted into, in pixels.
        marks: For each image whether to frame it green (true) or red (false).
    """
    columns = min(columns, len(images))
    num_lines = max(caption.count("\n") + 1 for caption in captions)
    width, height = cell + _GAP, cell + _LINE_HEIGHT * num_lines + _GAP
    num_rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, num_rows * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    # matplotlib brings a font with Greek, Cyrillic and accents; Pillow's own has only Latin.
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(path), _FONT_SIZE)
    for index, (array, caption) in enumerate(zip(images, captions, strict=True)):
        left = _GAP + index % columns * width
        top = _GAP + index // columns * height
        box = (left, top, left + cell - 1, top + cell - 1)
        draw.rectangle(box, fill=_EMPTY)
        # The frame takes its room from every image, so that all keep the same scale.
        image = _scale_into(array, cell - 2 * _FRAME)
        sheet.paste(image, (left + (cell - image.width) // 2, top + (cell - image.height) // 2))
        if marks is not None:
            draw.rectangle(box, outline=_RIGHT if marks[index] else _WRONG, width=_FRAME)
        for number, line in enumerate(caption.split("\n")):
            corner = (left, top + cell + 2 + number * _LINE_HEIGHT)
            draw.text(corner, _truncate_line(line, font, cell), fill=_INK, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _scale_into(array: npt.NDArray[np.uint8], side: int) -> Image.Image:
    """Return the image as RGB, scaled into a square of `side` pixels with its proportions kept."""
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    if image.mode == "RGBA":
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    image = image.convert("RGB")
    longest = max(image.size)
    if longest <= side:
        # A whole factor: otherwise some pixels would be wider than others.
        return ImageOps.scale(image, side // longest, Image.Resampling.NEAREST)
    size = (max(1, image.width * side // longest), max(1, image.height * side // longest))
    return image.resize(size, Image.Resampling.LANCZOS)


def _truncate_line(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a line with an ellipsis to at most `width` pixels."""
    if font.getlength(line) <= width:
        return line
    # Bounds the search: no glyph is narrower than a pixel.
    line = line[:width]
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"
