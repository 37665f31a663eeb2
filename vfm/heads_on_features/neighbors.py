"""Nearest neighbours (kNN) among embeddings: what features know of the classes before anything is trained."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_CHUNK = 1024


def score_neighbors(
    queries: npt.ArrayLike,
    references: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    k: int = 20,
    temperature: float = 0.07,
    leave_one_out: bool = False,
) -> npt.NDArray[np.float32]:
    """Fraction of the votes of each class among the k most similar references (Wu et al., 2018).

    A vote weighs exp(cosine similarity / temperature).

    Args:
        queries: Embeddings to classify, [N, D].
        references: Embeddings of known class, [M, D].
        target: Zeros and ones, or fractions, [M, C].
        k: Number of neighbors; all M where there are fewer.
        temperature: The smaller, the more the nearest count.
        leave_one_out: Whether queries and references are the same images, none of which votes for itself.

    Returns:
        Votes, [N, C]; with one class a reference, each row sums to 1.
    """
    vectors = [np.asarray(values, dtype=np.float32) for values in (queries, references)]
    units, stored = (
        v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in vectors
    )
    classes = np.asarray(target, dtype=np.float32)
    k = min(k, len(stored) - leave_one_out)
    rows = []
    for start in range(0, len(units), _CHUNK):
        similar = units[start : start + _CHUNK] @ stored.T
        if leave_one_out:
            similar[range(len(similar)), range(start, start + len(similar))] = -np.inf
        nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        votes = np.take_along_axis(similar, nearest, axis=1) / temperature
        weights = np.exp(votes - votes.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        rows.append(np.einsum("nk,nkc->nc", weights, classes[nearest]))
    return np.concatenate(rows).astype(np.float32)
