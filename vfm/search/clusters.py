"""Clusters, outliers, and a diverse sample to label next, by k-means and nearest neighbors of vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import OptionError

from vfm.search.neighbor_graph import NeighborGraph

OUTLIER_NEIGHBORS = 5
"""Neighbors whose mean cosine says how lonely a row is."""

_PER_CLUSTER = 256
_FEWEST = 50_000
"""Rows that k-means learns from: so many of each cluster, and at least so many in all."""
_MOST_CLUSTERS = 1000
_BLOCK = 8192

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Clusters:
    """N rows sorted into clusters, the largest first."""

    numbers: NDArray[np.int64]
    """Cluster of each row, from 0 on, int [N]."""
    similarity: Vectors
    """Cosine of each row with the middle of its cluster, float32 [N]."""
    sizes: NDArray[np.int64]
    """Rows of each cluster, int [C]."""

    def list_central(self, cluster: int, count: int) -> NDArray[np.intp]:
        """Return the positions of the rows nearest to the middle of a cluster, the nearest first."""
        members = np.flatnonzero(self.numbers == cluster)
        return members[np.argsort(-self.similarity[members], kind="stable")[:count]]


def cluster_rows(vectors: Vectors, num_clusters: int, *, seed: int = 0) -> Clusters:
    """Sort rows into clusters by k-means; of very many rows it learns from some.

    Args:
        vectors: Vectors of norm 1, float32 [N, D], perhaps in a file.
        num_clusters: Number of clusters; empty ones are left out.
        seed: Seed of the first middles.
    """
    from sklearn.cluster import MiniBatchKMeans

    num_rows = len(vectors)
    num_learned = min(num_rows, max(_FEWEST, _PER_CLUSTER * num_clusters))
    learned = np.sort(np.random.default_rng(seed).permutation(num_rows)[:num_learned])
    kmeans = MiniBatchKMeans(num_clusters, n_init=1, batch_size=2048, random_state=seed)
    middles = kmeans.fit(vectors if num_learned == num_rows else vectors[learned]).cluster_centers_
    directions = middles / np.maximum(np.linalg.norm(middles, axis=1, keepdims=True), 1e-12)
    numbers = np.empty(num_rows, np.int64)
    similarity = np.empty(num_rows, np.float32)
    for start in range(0, num_rows, _BLOCK):
        block = np.asarray(vectors[start : start + _BLOCK])
        nearest = (block @ middles.T - (middles**2).sum(1) / 2).argmax(1)
        numbers[start : start + _BLOCK] = nearest
        similarity[start : start + _BLOCK] = (block * directions[nearest]).sum(1)
    sizes = np.bincount(numbers, minlength=num_clusters)
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(num_clusters)
    return Clusters(rank[numbers], similarity, sizes[order][sizes[order] > 0])


def score_outliers(graph: NeighborGraph) -> Vectors:
    """Return how lonely each row is, float32 [N]: 1 less the mean cosine of its nearest neighbors."""
    has_neighbor = graph.neighbors >= 0
    sums = np.where(has_neighbor, graph.similarity, 0).sum(1)
    scores: Vectors = (1 - sums / np.maximum(has_neighbor.sum(1), 1)).astype(np.float32)
    return scores


def select_rows(
    vectors: Vectors, count: int, is_labeled: NDArray[np.bool_], *, seed: int = 0
) -> tuple[NDArray[np.int64], Clusters]:
    """Choose rows to label next: each the most central of a large cluster that has the fewest labels yet.

    There are as many clusters as labels will be, a thousand at most. On few images that teaches a head more than rows
    far from all others do (k-center), which are the odd ones.

    Args:
        vectors: Vectors of norm 1, float32 [N, D].
        count: Number of rows to choose.
        is_labeled: Whether each row has a label already, bool [N].
        seed: Seed of the clusters.

    Returns:
        Positions of the rows, the first to label first, and the clusters.

    Raises:
        OptionError: There are not so many rows without a label.
    """
    num_open = int((~is_labeled).sum())
    if not 1 <= count <= num_open:
        raise OptionError(
            f"-k is {count}; there are {num_open:,} rows without a label to choose from. Give a number from 1 to that."
            if num_open
            else "Every row has a label already, so there is none to choose. Embed more images, or choose among others."
        )
    num_clusters = min(count + int(is_labeled.sum()), _MOST_CLUSTERS, len(vectors))
    clusters = cluster_rows(vectors, num_clusters, seed=seed)
    num_clusters = len(clusters.sizes)
    num_labels = np.bincount(clusters.numbers[is_labeled], minlength=num_clusters)
    # Rows without a label by cluster, the most central last.
    order = np.lexsort((clusters.similarity, clusters.numbers))
    order = order[~is_labeled[order]]
    ends = np.searchsorted(clusters.numbers[order], np.arange(num_clusters + 1))
    waiting = [order[ends[i] : ends[i + 1]].tolist() for i in range(num_clusters)]
    is_open = np.array([bool(rows) for rows in waiting])
    chosen = []
    for _ in range(count):
        # Clusters are sorted by size, so the first of those with the fewest labels is the largest.
        cluster = int(np.where(is_open, num_labels, np.iinfo(np.int64).max).argmin())
        chosen.append(waiting[cluster].pop())
        num_labels[cluster] += 1
        is_open[cluster] = bool(waiting[cluster])
    return np.array(chosen, np.int64), clusters
