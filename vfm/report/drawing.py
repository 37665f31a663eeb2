"""Boxes drawn on pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.media.drawing import draw_boxes

FOUND, MISSED, WRONG = "#1a9850", "#f0a202", "#d73027"
"""Colours of a true box that was found, of one that was not, and of an answer that is none."""


class Marked(NamedTuple):
    """A picture's boxes, sorted by what became of them. Corners are [M, 4], in its pixels."""

    found: NDArray[np.float32]
    missed: NDArray[np.float32]
    wrong: NDArray[np.float32]
    captions: Sequence[str]
    """A caption for each wrong box."""


def draw_marked_boxes(image: NDArray[np.uint8], boxes: Marked, side: int) -> NDArray[np.uint8]:
    """Draw a picture with its boxes: green found, amber missed, red wrong.

    A picture, uint8 [H, W, 3], smaller than `side` is enlarged first, so that lines stay thin.
    """
    scale = max(1, side // max(image.shape[:2]))
    image = image.repeat(scale, axis=0).repeat(scale, axis=1)
    parts = (
        (boxes.found, FOUND, ()),
        (boxes.missed, MISSED, ()),
        (boxes.wrong, WRONG, boxes.captions),
    )
    for corners, color, captions in parts:
        colors = [color] * len(corners)
        image = draw_boxes(image, corners * scale, captions=captions, colors=colors)
    return image
