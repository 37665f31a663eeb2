"""Heatmaps of deepfake detection: where a picture looks forged, drawn over it with Pillow alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vfm_runtime.deepfake.evidence import FrameEvidence
from vfm_runtime.deepfake.faces.geometry import warp
from vfm_runtime.errors import OptionError
from vfm_runtime.media.drawing import draw_boxes, shrink
from vfm_runtime.media.image import ImageSource, Pixels, open_image
from vfm_runtime.media.video import read_video

LOW, HIGH = (255, 220, 0), (220, 0, 0)
"""Colors of little heat and of full heat; none at all is transparent."""

OPACITY = 0.65
"""Opacity of full heat, 0 to 1."""

COLORS = {"real": "#2e7d32", "fake": "#c62828", "undecided": "#616161"}
"""Color of each answer."""

_TILE, _LINE, _GAP = 160, 18, 4


class SheetTile(NamedTuple):
    """One crop of a sheet."""

    pixels: Pixels
    heatmap: NDArray[np.float32] | None
    caption: str


def blend_heat(image: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """Draw heat over the whole of an image.

    Args:
        image: uint8 [H, W, 3]; it is left as it is.
        heat: [h, w] of any size, 0 to 1.
    """
    height, width = image.shape[:2]
    strength = np.clip(np.asarray(_resize_heat(heat, (width, height))), 0, 1)[:, :, None]
    color = np.array(LOW) * (1 - strength) + np.array(HIGH) * strength
    mixed = image + (color - image) * (OPACITY * strength)
    drawn: Pixels = np.clip(mixed.round(), 0, 255).astype(np.uint8)
    return drawn


def _resize_heat(heat: NDArray[np.float32], size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.asarray(heat, np.float32)).resize(size, Image.Resampling.BILINEAR)


def paste_heatmap(
    heatmap: NDArray[np.float32], matrix: NDArray[np.float64], side: int, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Bring the heat of a crop to where the crop lies in its image; 0 elsewhere.

    Args:
        heatmap: [h, w], 0 to 1, over the whole crop.
        matrix: [2, 3], from pixels of the image to pixels of the crop.
        side: Side of the crop in pixels.
        shape: Height and width of the image.

    Returns:
        [H, W] of the image.
    """
    # Pillow asks for the map from pixels of the result to those of the source, which is the crop's matrix.
    coefficients = tuple(matrix.ravel().tolist())
    moved = _resize_heat(heatmap, (side, side)).transform(
        (shape[1], shape[0]), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


def draw_sheet(tiles: Sequence[SheetTile], columns: int = 4) -> Pixels:
    """Lay crops out side by side, each with its heat beside it and a caption below.

    Returns:
        uint8 [H, W, 3].
    """
    columns = min(columns, len(tiles))
    num_rows = -(-len(tiles) // columns)
    wide, high = 2 * _TILE + 2 * _GAP, _TILE + _LINE + _GAP
    page = Image.new("RGB", (columns * wide + _GAP, num_rows * high + _GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, tile in enumerate(tiles):
        left = _GAP + number % columns * wide
        top = _GAP + number // columns * high
        pictures = [tile.pixels]
        if tile.heatmap is not None:
            pictures.append(blend_heat(tile.pixels, tile.heatmap))
        for offset, picture in enumerate(pictures):
            fitted = ImageOps.contain(Image.fromarray(picture), (_TILE, _TILE))
            page.paste(fitted, (left + offset * (_TILE + _GAP), top))
        pen.text((left, top + _TILE), tile.caption, fill="black", font=font)
    return np.asarray(page)


def add_banner(image: Pixels, text: str, color: str) -> Pixels:
    """Add a line of text below an image.

    Args:
        image: uint8 [H, W, 3].
        text: Line of text, cut off where it is longer than the image is wide.
        color: Color of the ground below the text, such as `#e6194b`.
    """
    height, width = image.shape[:2]
    size = max(11, width // 45)
    page = Image.new("RGB", (width, height + 2 * size), color)
    page.paste(Image.fromarray(image), (0, 0))
    pen = ImageDraw.Draw(page)
    pen.text((size // 2, height + size // 3), text, fill="white", font=ImageFont.load_default(size))
    return np.asarray(page)


def draw_picture(
    source: ImageSource,
    frames: Sequence[FrameEvidence],
    scores: Sequence[float],
    color: str,
    max_side: int | None = None,
) -> Pixels:
    """Draw the heat of a picture's crops where it lies, and the faces with their probability of fake.

    Raises:
        ImageError: It cannot be opened.
    """
    # Shrunk before anything is drawn: heat is for the eye alone, and a large photo would take seconds.
    image, scale = shrink(open_image(source), max_side)
    shape = image.shape[0], image.shape[1]
    heat = np.zeros(shape, np.float32)
    for frame in frames:
        if frame.heatmap is not None and frame.matrix is not None:
            matrix = frame.matrix / np.array([scale, scale, 1.0])
            heat = np.maximum(heat, paste_heatmap(frame.heatmap, matrix, frame.size, shape))
    boxes = [
        (frame.box * scale, score)
        for frame, score in zip(frames, scores, strict=True)
        if frame.box is not None
    ]
    return draw_boxes(
        blend_heat(image, heat),
        [box for box, _ in boxes],
        captions=[f"{score:.2f}" for _, score in boxes],
        colors=[color] * len(boxes),
    )


def draw_video(
    source: ImageSource,
    frames: Sequence[FrameEvidence],
    scores: Sequence[float],
    num_frames: int,
) -> Pixels:
    """Lay out the crops of a video with their heat; frames without a crop are shown whole.

    Raises:
        ImageError: It cannot be opened.
        ValueError: An image is given in its place.
    """
    if isinstance(source, np.ndarray | Image.Image):
        raise OptionError(
            f"The verdict is of a video, and a {type(source).__name__} is given to draw on. "
            "Give the path of the video, or the bytes of its file."
        )
    clip = read_video(source, num_frames)
    crops: dict[int, list[tuple[FrameEvidence, float]]] = {}
    for evidence, score in zip(frames, scores, strict=True):
        crops.setdefault(evidence.frame, []).append((evidence, score))
    tiles = []
    for number, frame in enumerate(clip.frames):
        for evidence, score in crops.get(number, []):
            assert evidence.matrix is not None  # a crop of a video was cut out of a frame
            crop = warp(frame.pixels, evidence.matrix, evidence.size)
            tiles.append(SheetTile(crop, evidence.heatmap, f"{evidence.time:.2f} s: {score:.3f}"))
        if number not in crops:
            tiles.append(SheetTile(frame.pixels, None, f"{frame.time:.2f} s: nothing to judge"))
    return draw_sheet(tiles)
