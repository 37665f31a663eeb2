"""Metrics of embeddings that need no labels: effective rank (RankMe) and uniformity, which tell a collapse."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MOST = 2048
"""Vectors that a metric looks at, spread evenly; more change it little."""


def compute_effective_rank(vectors: npt.ArrayLike) -> float:
    """RankMe (Garrido et al., 2023): exp of the entropy of the singular values, as fractions of their sum.

    It is 1 where all vectors are multiples of one, and at most the width of the vectors or their number. Vectors are
    not centered, as in the paper: centered, a collapse to one point would look like noise of full rank.

    Args:
        vectors: Embeddings of N images, not centered, [N, D].
    """
    values = _select(vectors)
    squares = np.linalg.eigvalsh(
        values.T @ values if len(values) > values.shape[1] else values @ values.T
    )
    singular = np.sqrt(squares.clip(min=0))
    fractions = singular / max(singular.sum(), 1e-12) + 1e-12
    return float(np.exp(-(fractions * np.log(fractions)).sum()))


def compute_uniformity(vectors: npt.ArrayLike) -> float:
    """How evenly directions fill the sphere (Wang and Isola, 2020): log of the mean exp(-2 distance²) of pairs.

    It is 0 where all vectors have one direction, and falls towards -4 the more evenly they lie.

    Args:
        vectors: Embeddings of any norm, [N, D], at least two.
    """
    values = _select(vectors)
    units = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    cosines = (units @ units.T)[np.triu_indices(len(units), 1)]
    return float(np.log(np.exp(4 * (cosines - 1)).mean()))


def _select(vectors: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.asarray(vectors, np.float64)
    chosen = np.linspace(0, len(values) - 1, min(len(values), _MOST)).round().astype(int)
    return np.asarray(values[chosen])
