"""Deletion and insertion score of attribution maps: whether what a map calls important is what the score hangs on.

Petsiuk et al., RISE: randomized input sampling for explanation of black-box models, 2018. Pixels are taken out from the
most important on, or put back into a blurred picture; the area below the curve of the score is small for deletion,
large for insertion, where the map is right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from vfm_runtime.media.image import Pixels

Map = NDArray[np.float32]
Scores = Callable[[NDArray[np.uint8]], NDArray[np.floating]]
"""Maps pictures, uint8 [N, H, W, 3], to the score of one label, [N]."""

NUM_RANDOM = 9
"""Random maps beside each map: to beat all of them by chance happens once in ten."""
_NUM_STEPS = 8
_BLUR = 10 / 224


class MapScore(NamedTuple):
    """How much the score of a label hangs on what a map calls important."""

    deletion: float
    """Mean score while the most important pixels are taken out; the lower the better."""
    insertion: float
    """Mean score while they are put into a blurred picture; the higher the better."""

    @property
    def gain(self) -> float:
        """Insertion less deletion, which is about 0 for a map that says nothing."""
        return self.insertion - self.deletion

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"deletion": self.deletion, "insertion": self.insertion, "gain": self.gain}


def enlarge_map(values: Map, size: tuple[int, int]) -> Map:
    """Bring a map [h, w] to the size of a picture, height and width."""
    enlarged: Map = np.asarray(
        cv2.resize(values, size[::-1], interpolation=cv2.INTER_CUBIC), np.float32
    )
    return enlarged


def score_map(values: Map, pixels: Pixels, scores: Scores) -> MapScore:
    """Measure a map of a picture.

    Args:
        values: Importance of each place, [h, w], of any size.
        pixels: Picture, uint8 [H, W, 3].
        scores: Score of the label that the map explains.
    """
    height, width = pixels.shape[:2]
    order = np.argsort(-enlarge_map(values, (height, width)).ravel(), kind="stable")
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    limits = np.linspace(0, len(order), _NUM_STEPS + 1)
    # [S, H, W, 1], whether a pixel is among the most important.
    chosen = (ranks < limits[:, None]).reshape(-1, height, width, 1)
    plain = np.broadcast_to(pixels.mean(axis=(0, 1)).round().astype(np.uint8), pixels.shape)
    blurred = cv2.GaussianBlur(pixels, (0, 0), _BLUR * min(height, width))
    deleted, inserted = np.where(chosen, plain, pixels), np.where(chosen, pixels, blurred)
    areas = [float(np.trapezoid(scores(each)) / _NUM_STEPS) for each in (deleted, inserted)]
    return MapScore(*areas)


def score_random_maps(
    shape: tuple[int, int], pixels: Pixels, scores: Scores, *, seed: int = 0
) -> list[MapScore]:
    """Measure random maps of the same grid, [h, w], as a map is to be compared with."""
    generator = np.random.default_rng(seed)
    return [
        score_map(generator.random(shape, np.float32), pixels, scores) for _ in range(NUM_RANDOM)
    ]
