"""Where a picture looks forged, drawn over it: with Pillow alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vfm_runtime.deepfake.faces.crop import warp
from vfm_runtime.media.drawing import draw_boxes
from vfm_runtime.media.image import ImageSource, Pixels, open_image
from vfm_runtime.media.video import read_video

if TYPE_CHECKING:
    from vfm_runtime.deepfake.verdict import FrameEvidence, Verdict

LOW, HIGH = (255, 220, 0), (220, 0, 0)
"""Colours of little heat and of full heat; none at all is transparent."""

OPACITY = 0.65
"""Of full heat."""

COLOURS = {"real": "#2e7d32", "fake": "#c62828", "undecided": "#616161"}
"""Of each answer."""

_TILE, _LINE, _GAP = 160, 18, 4


class Tile(NamedTuple):
    """One part of a sheet."""

    pixels: Pixels
    heatmap: NDArray[np.float32] | None
    caption: str


def overlay(image: Pixels, heatmap: NDArray[np.float32]) -> Pixels:
    """Draw heat over the whole of an image.

    Args:
        image: uint8 [H, W, 3]; it is left as it is.
        heatmap: [h, w] of any size, 0 to 1.
    """
    height, width = image.shape[:2]
    grown = Image.fromarray(np.asarray(heatmap, np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return blend(image, np.asarray(grown))


def blend(image: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """Draw heat of the image's own size over it.

    Args:
        image: uint8 [H, W, 3]; it is left as it is.
        heat: [H, W], 0 to 1.
    """
    strength = np.clip(heat, 0, 1)[:, :, None]
    colour = np.array(LOW) * (1 - strength) + np.array(HIGH) * strength
    mixed = image + (colour - image) * (OPACITY * strength)
    return np.clip(mixed.round(), 0, 255).astype(np.uint8)


def place(
    heatmap: NDArray[np.float32], matrix: NDArray[np.float64], side: int, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Bring the heat of a crop to where the crop lies in its image; 0 elsewhere.

    Args:
        heatmap: [h, w], over the whole crop.
        matrix: [2, 3], from pixels of the image to pixels of the crop.
        side: Of the crop in pixels.
        shape: Height and width of the image.

    Returns:
        [H, W] of the image.
    """
    grown = Image.fromarray(np.asarray(heatmap, np.float32)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    # Pillow asks for the map from the result's places to the source's, which is the crop's matrix.
    coefficients = tuple(matrix.ravel().tolist())
    moved = grown.transform(
        (shape[1], shape[0]), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


def sheet(tiles: Sequence[Tile], columns: int = 4) -> Pixels:
    """Lay crops out side by side, each with its heat beside it and a caption below.

    Args:
        tiles: One or more.
        columns: Tiles in a row.

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
            pictures.append(overlay(tile.pixels, tile.heatmap))
        for offset, picture in enumerate(pictures):
            fitted = ImageOps.contain(Image.fromarray(picture), (_TILE, _TILE))
            page.paste(fitted, (left + offset * (_TILE + _GAP), top))
        pen.text((left, top + _TILE), tile.caption, fill="black", font=font)
    return np.asarray(page)


def banner(image: Pixels, text: str, colour: str) -> Pixels:
    """Add a line of text below an image.

    Args:
        image: uint8 [H, W, 3].
        text: Cut off where it is longer than the image is wide.
        colour: Of its ground, such as `#e6194b`.
    """
    height, width = image.shape[:2]
    size = max(11, width // 45)
    page = Image.new("RGB", (width, height + 2 * size), colour)
    page.paste(Image.fromarray(image), (0, 0))
    pen = ImageDraw.Draw(page)
    pen.text((size // 2, height + size // 3), text, fill="white", font=ImageFont.load_default(size))
    return np.asarray(page)


def draw_picture(verdict: "Verdict", source: ImageSource) -> Pixels:
    """Draw the heat of a picture's verdict where it lies, the faces, and the answer below.

    Args:
        verdict: Of the picture.
        source: The picture.

    Raises:
        ImageError: It cannot be opened.
    """
    image = open_image(source)
    height, width = image.shape[:2]
    heat = np.zeros((height, width), np.float32)
    for frame in verdict.frames:
        if frame.heatmap is not None and frame.matrix is not None:
            heat = np.maximum(heat, place(frame.heatmap, frame.matrix, frame.size, (height, width)))
    found = [
        (frame.box, verdict.score_of(frame)) for frame in verdict.frames if frame.box is not None
    ]
    drawn = draw_boxes(
        blend(image, heat),
        [box for box, _ in found],
        captions=[f"{score:.2f}" for _, score in found],
        colours=[COLOURS[verdict.label]] * len(found),
    )
    return banner(drawn, verdict.headline, COLOURS[verdict.label])


def draw_video(verdict: "Verdict", source: ImageSource) -> Pixels:
    """Lay out the crops of a video's verdict with their heat; frames without a crop are shown whole.

    Args:
        verdict: Of the video.
        source: The video: a path, or its bytes.

    Raises:
        ImageError: It cannot be opened.
        ValueError: An image is given in its place.
    """
    if isinstance(source, np.ndarray | Image.Image):
        raise ValueError(
            f"The verdict is of a video, and a {type(source).__name__} is given to draw on. "
            "Give the path of the video, or the bytes of its file."
        )
    clip = read_video(source, verdict.num_frames)
    by_frame: dict[int, list[FrameEvidence]] = {}
    for evidence in verdict.frames:
        by_frame.setdefault(evidence.frame, []).append(evidence)
    tiles = []
    for number, frame in enumerate(clip.frames):
        found = by_frame.get(number, [])
        tiles += [_tile(frame.pixels, evidence, verdict) for evidence in found]
        if not found:
            tiles.append(Tile(frame.pixels, None, f"{frame.time:.2f} s: nothing to judge"))
    return banner(sheet(tiles), verdict.headline, COLOURS[verdict.label])


def _tile(image: Pixels, evidence: "FrameEvidence", verdict: "Verdict") -> Tile:
    assert evidence.matrix is not None
    crop = warp(image, evidence.matrix, evidence.size)
    return Tile(crop, evidence.heatmap, f"{evidence.time:.2f} s: {verdict.score_of(evidence):.3f}")
