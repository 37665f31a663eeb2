"""Retrieval metrics: recall at K of texts by images and of images by texts (R@1, R@5, R@10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RANKS = (1, 5, 10)
"""Numbers of candidates among which a right one is looked for."""
_BLOCK = 1 << 22
"""Cosines that are computed at once."""


class Recall(NamedTuple):
    """How often a right candidate is among the most similar ones."""

    at: dict[int, float]
    """Fraction of the queries by number of candidates that are looked at."""
    num_queries: int
    """Queries that were asked."""
    num_candidates: int
    """Candidates that each query chose among: the recall falls with their number."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        recalls = {f"recall_at_{k}": value for k, value in self.at.items()}
        return {**recalls, "num_queries": self.num_queries, "num_candidates": self.num_candidates}


def measure_retrieval(
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    numbers: NDArray[np.int64],
    ranks: Sequence[int] = RANKS,
) -> dict[str, Recall]:
    """Return the recall of each direction, `image_to_text` and `text_to_image`; equal texts are one.

    Args:
        images: Vectors of the images, float32 [N, D], of norm 1.
        texts: Vector of the text of each image, float32 [N, D], of norm 1.
        numbers: Number of each image's text, int64 [N], the same for equal texts.
        ranks: Numbers of candidates that are looked at.
    """
    _, first, text_of_image = np.unique(numbers, return_index=True, return_inverse=True)
    unique = texts[first]
    everything = np.arange(len(first))
    return {
        "image_to_text": _measure(images, unique, text_of_image, everything, ranks),
        "text_to_image": _measure(unique, images, everything, text_of_image, ranks),
    }


def _measure(
    queries: NDArray[np.float32],
    candidates: NDArray[np.float32],
    wanted: NDArray[np.int64],
    groups: NDArray[np.int64],
    ranks: Sequence[int],
) -> Recall:
    """Return the recall of queries [Q, D] that want candidates [M, D] of a group each."""
    rows = max(1, _BLOCK // len(candidates))
    best: list[NDArray[np.int64]] = []
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        cosines = queries[part] @ candidates.T
        is_right = groups[None, :] == wanted[part, None]
        right = np.where(is_right, cosines, -np.inf).max(axis=1, keepdims=True)
        # A wrong candidate that is as similar goes before: a model that tells nothing apart is right by no luck.
        best.append(((cosines >= right) & ~is_right).sum(axis=1))
    places_before = np.concatenate(best)
    at = {k: float((places_before < k).mean()) for k in ranks}
    return Recall(at, len(queries), len(candidates))
