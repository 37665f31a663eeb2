"""Head of taught boxes: a prototype for each class, with a threshold and a scale from what is not of the class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.teaching.state import TaughtState
from vfm_runtime.teaching.taught import center_vectors

_MOST_SIMILAR = 50
"""Other boxes, those most like the examples, that a prototype is moved away from."""
_AWAY = 0.25
_HIGH_QUANTILE = 0.99
_LOGIT = float(np.log(9.0))
"""Logit of an average example: a score of 0.9; of nearly all other boxes it is below 0.1."""
_LEAST_MARGIN = 0.02


@dataclass(frozen=True, eq=False)
class BoxHead:
    """Scores of C classes by the cosine of an embedding and a prototype. D numbers."""

    prototypes: NDArray[np.float32]
    """[C, D], of norm 1."""
    thresholds: NDArray[np.float32]
    """Cosines of which the score is a half, [C]."""
    scales: NDArray[np.float32]
    """What a cosine above the threshold is multiplied by to become a logit, [C]."""

    def compute_scores(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a score for each class, 0 to 1, float32 [K, C], of embeddings [K, D]."""
        cosines = scale_vectors(vectors) @ self.prototypes.T
        logits = (cosines - self.thresholds) * self.scales
        return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits), np.float32)


def fit_box_head(state: TaughtState) -> BoxHead:
    """Fit a prototype for each class: the mean of its examples, moved away from other boxes that are most like them.

    Other boxes are what its images show besides, which is background and objects of other classes, and the examples of
    the other classes. The threshold lies halfway from the cosine that 99 of 100 of these stay below to the mean cosine
    of the examples.
    """
    assert state.vectors is not None
    vectors = scale_vectors(state.vectors)
    labels = np.array([example.label for example in state.examples])
    prototypes, thresholds, scales = [], [], []
    for label in state.labels:
        examples = vectors[labels == label]
        parts = [one.vectors for one in state.surroundings if one.label == label]
        others = scale_vectors(np.concatenate([*parts, vectors[labels != label]]))
        mean = examples.mean(axis=0)
        similar = others[np.argsort(-(others @ mean), kind="stable")[:_MOST_SIMILAR]]
        away = _AWAY * similar.mean(axis=0) if len(similar) else 0.0
        prototype = scale_vectors((mean - away)[None])[0]
        high = float(np.quantile(others @ prototype, _HIGH_QUANTILE)) if len(others) else 0.0
        typical = float((examples @ prototype).mean())
        # An example that is less like its class than background is leaves no room: nothing but its like is found.
        margin = max((typical - high) / 2, _LEAST_MARGIN)
        prototypes.append(prototype)
        thresholds.append(typical - margin)
        scales.append(_LOGIT / margin)
    return BoxHead(
        np.stack(prototypes), np.array(thresholds, np.float32), np.array(scales, np.float32)
    )


def scale_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors [N, D] of norm 1."""
    return center_vectors(vectors, np.zeros(vectors.shape[1], np.float32))
