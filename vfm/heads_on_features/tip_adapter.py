"""Tip-Adapter: labels as words and a few examples together, by a cache of the examples beside the text tower."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.heads_on_features import scale_features

_ALPHAS, _BETAS = (1.0, 3.0, 10.0), (1.0, 5.5)


@dataclass(frozen=True, eq=False)
class TipAdapter:
    """Tip-Adapter without training (Zhang et al., 2022, arXiv:2207.09519), equation 4.

    The logits of an image with the vector f, of norm 1, are alpha * exp(-beta * (1 - f F^T)) L + scale * f W^T. F are
    the vectors of the examples, L their labels as rows of zeros and a one, and W the vectors of the labels as words.
    """

    words: NDArray[np.float32]
    """W, the vector of each label as words, of norm 1, [C, D]."""
    scale: float
    """What cosines of images and words are multiplied by, 100 of CLIP."""
    alpha: float = 1.0
    """How much examples count beside words; 0 for words alone."""
    beta: float = 5.5
    """How fast an example counts less, the less it is like the image."""

    def compute_logits(
        self, features: NDArray[Any], examples: NDArray[Any], target: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return logits [M, C] of images.

        Args:
            features: Vectors of the images, [M, D].
            examples: Vectors of the examples, [N, D].
            target: Class of each example, int [N].
        """
        images, cache = (scale_features(values, None, True) for values in (features, examples))
        logits = self.scale * images @ self.words.T.astype(np.float64)
        affinities = np.exp(-self.beta * (1 - images @ cache.T))
        return np.asarray(logits + self.alpha * affinities @ np.eye(len(self.words))[target])

    def list_settings(self) -> list[TipAdapter]:
        """Return words alone, and with examples the settings that are tried, those of the paper among them."""
        pairs = [(alpha, beta) for alpha in _ALPHAS for beta in _BETAS]
        return [replace(self, alpha=alpha, beta=beta) for alpha, beta in [(0.0, 1.0), *pairs]]
