"""Nearest neighbors of every row, near-duplicates among them: blocked products over cells of k-means, out of core."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import DataError

from vfm.embed.store import EmbeddingStore
from vfm.search.exact import VectorBlock, load_block

_IN_MEMORY = 2**29
"""Bytes of vectors above which they are kept in a file of the temporary folder."""
_ONE_CELL = 10_000
"""Rows up to which every pair is compared."""
_CELL = 1000
"""Rows in a cell, in the mean."""
_MOST_PROBES = 24
_SAMPLE = 1000
"""Rows in each of two samples, in both of which the recall must be reached; the lower one is said."""
_BLOCK = 4096
_TIE = 1e-5

Vectors = NDArray[np.float32]
Positions = NDArray[np.int32]


@dataclass(frozen=True)
class NeighborGraph:
    """The nearest other rows of each of N rows, best first."""

    neighbors: Positions
    """Positions of rows, int32 [N, K]; -1 where there are none."""
    similarity: Vectors
    """Cosines, float32 [N, K]; -2 where there are none."""
    recall: float
    """Fraction of the true neighbors that are among them, of a sample compared with every row; 1 of an exact graph."""
    num_pairs: int
    """True neighbors that this was measured on."""
    num_probes: int
    """Cells that each row was compared with; 0 where there was one for all."""


@contextmanager
def open_rows(
    store: EmbeddingStore, columns: Sequence[str] = (), where: str | None = None
) -> Iterator[VectorBlock]:
    """Give all rows of a store, with vectors of norm 1: in memory, or many of them in a temporary file.

    Args:
        store: Store whose rows are read.
        columns: Columns of the rows to read besides their path.
        where: Expression of the store, as `parse_filter` gives it.

    Raises:
        DataError: There are no rows, or no room for the file.
    """
    num_rows, width = store.num_rows, store.model.width
    if num_rows * width * 4 <= _IN_MEMORY:
        yield load_block(store, columns, where)
        return
    with tempfile.TemporaryFile(prefix="vfm-vectors-") as file:
        try:
            file.truncate(num_rows * width * 4)
            vectors: Vectors = np.memmap(file, np.float32, "r+", shape=(num_rows, width))
            block = load_block(store, columns, where, vectors=vectors)
        except OSError as error:
            raise DataError(
                f"{num_rows:,} vectors take {num_rows * width * 4 / 2**30:.1f} GiB of {tempfile.gettempdir()}: "
                f"{error}. Make room there, or name another folder by the environment variable TMPDIR."
            ) from error
        yield block


def build_graph(
    vectors: Vectors,
    count: int,
    *,
    least: float = -1.0,
    values: NDArray[Any] | None = None,
    recall: float = 0.95,
    progress: Callable[[str], None] | None = None,
) -> NeighborGraph:
    """Find the nearest other rows of every row.

    Rows are sorted into cells by k-means, and each is compared with the rows of the cells that are nearest to it: of as
    many as it takes for a sample of rows, which is compared with every row, to have nearly all of its neighbors there.

    Args:
        vectors: Vectors of norm 1, float32 [N, D], perhaps in a file.
        count: Number of neighbors of each row.
        least: Cosine below which rows are no neighbors.
        values: Number of each row's value, int [N], where only rows of different values are neighbors; -1 for none.
        recall: Fraction of the true neighbors that shall be found.
        progress: Told what is being done.
    """
    num_rows = len(vectors)
    tell = progress or (lambda _: None)
    lists = _BestLists(num_rows, count, least, values)
    if num_rows <= _ONE_CELL:
        everything = np.arange(num_rows)
        lists.compare(vectors, everything, everything)
        return NeighborGraph(*lists.sort(), recall=1.0, num_pairs=0, num_probes=0)
    sample = np.sort(np.random.default_rng(0).permutation(num_rows)[: 2 * _SAMPLE])
    tell(f"comparing {len(sample):,} rows with all {num_rows:,}")
    truth = _BestLists(len(sample), count, -1.0, values)
    sampled = vectors[sample]
    for start in range(0, num_rows, _BLOCK):
        targets = np.arange(start, min(start + _BLOCK, num_rows))
        similarity = sampled @ vectors[start : start + _BLOCK].T
        truth.update(np.arange(len(sample)), sample, targets, similarity)
    true_neighbors, true_similarity = truth.sort()
    # The nearest neighbor counts even where it is no near-duplicate: these, which are easier to find, may be few.
    is_judged = true_similarity >= least
    is_judged[:, 0] = true_neighbors[:, 0] >= 0
    tell(f"sorting {num_rows:,} rows into {num_rows // _CELL:,} cells")
    probes = _assign_cells(vectors, num_rows // _CELL)
    # The probe of a sampled row by which each of its true neighbors would be met.
    meets = probes[sample][:, None, :] == probes[true_neighbors][:, :, :1]
    ranks = np.where(meets.any(2), meets.argmax(2), _MOST_PROBES)
    halves = [ranks[half::2][is_judged[half::2]] for half in (0, 1)]
    for num_probes in range(1, probes.shape[1] + 1):
        reached = [float((half < num_probes).sum() / max(len(half), 1)) for half in halves]
        if min(reached) >= recall:
            break
    tell(f"comparing each row with {num_probes} cells")
    _compare_cells(vectors, probes[:, :num_probes], lists)
    return NeighborGraph(
        *lists.sort(),
        recall=round(min(reached), 4),
        num_pairs=min(map(len, halves)),
        num_probes=num_probes,
    )


def _assign_cells(vectors: Vectors, num_cells: int) -> Positions:
    """Return the cells nearest to each row, best first, int32 [N, P]."""
    from sklearn.cluster import MiniBatchKMeans

    random = np.random.default_rng(0)
    sample = np.sort(random.permutation(len(vectors))[: 50 * num_cells])
    kmeans = MiniBatchKMeans(
        num_cells, init="random", n_init=1, batch_size=4096, max_iter=10, random_state=0
    )
    centers = kmeans.fit(vectors[sample]).cluster_centers_
    num_probes = min(_MOST_PROBES, num_cells)
    probes = np.empty((len(vectors), num_probes), np.int32)
    halves = (centers**2).sum(1) / 2
    for start in range(0, len(vectors), _BLOCK):
        scores = vectors[start : start + _BLOCK] @ centers.T - halves
        best = np.argpartition(scores, num_cells - num_probes, axis=1)[:, num_cells - num_probes :]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        probes[start : start + _BLOCK] = np.take_along_axis(best, order, 1)
    return probes


def _compare_cells(vectors: Vectors, probes: Positions, lists: _BestLists) -> None:
    """Compare the rows that probe a cell with those that lie in it, cell by cell."""
    num_cells = int(probes.max()) + 1
    cells = np.arange(num_cells + 1)
    order = np.argsort(probes, axis=None, kind="stable")
    starts = np.searchsorted(probes.ravel()[order], cells)
    members = np.argsort(probes[:, 0], kind="stable")
    member_starts = np.searchsorted(probes[members, 0], cells)
    for cell in range(num_cells):
        targets = members[member_starts[cell] : member_starts[cell + 1]]
        queries = order[starts[cell] : starts[cell + 1]] // probes.shape[1]
        lists.compare(vectors, queries, targets)


class _BestLists:
    """The best neighbors so far of each of N rows."""

    def __init__(
        self, num_rows: int, count: int, least: float, values: NDArray[Any] | None = None
    ) -> None:
        self._least = least
        self._values = values
        self._count = count
        self._neighbors = np.full((num_rows, count), -1, np.int32)
        self._similarity = np.full((num_rows, count), -2, np.float32)

    def compare(self, vectors: Vectors, queries: NDArray[Any], targets: NDArray[Any]) -> None:
        """Compare some rows with others, by blocks."""
        for first in range(0, len(targets), _BLOCK):
            part = targets[first : first + _BLOCK]
            block = vectors[part]
            for start in range(0, len(queries), _BLOCK):
                rows = queries[start : start + _BLOCK]
                self.update(rows, rows, part, vectors[rows] @ block.T)

    def update(
        self,
        rows: NDArray[Any],
        queries: NDArray[Any],
        targets: NDArray[Any],
        similarity: Vectors,
    ) -> None:
        """Take in the cosines [n, m] of queries with targets, whose positions go up; a row is not its own neighbor."""
        spots = np.minimum(np.searchsorted(targets, queries), len(targets) - 1)
        itself = np.flatnonzero(targets[spots] == queries)
        similarity[itself, spots[itself]] = -2
        if self._values is not None:
            one, other = self._values[queries][:, None], self._values[targets]
            similarity[(one == other) | (one < 0) | (other < 0)] = -2
        floor = np.maximum(self._similarity[rows].min(1), self._least)
        better = np.flatnonzero(similarity.max(1) >= floor)
        rows, similarity = rows[better], similarity[better]
        if similarity.shape[1] > self._count:
            best = np.argpartition(similarity, -self._count, axis=1)[:, -self._count :]
            similarity = np.take_along_axis(similarity, best, 1)
        else:
            best = np.broadcast_to(np.arange(similarity.shape[1]), similarity.shape)
        similarity = np.where(similarity >= self._least, similarity, np.float32(-2))
        names = np.where(similarity > -2, targets[best], -1)
        joined = np.concatenate([self._similarity[rows], similarity], axis=1)
        names = np.concatenate([self._neighbors[rows], names], axis=1)
        best = np.argpartition(joined, -self._count, axis=1)[:, -self._count :]
        self._similarity[rows] = np.take_along_axis(joined, best, 1)
        self._neighbors[rows] = np.take_along_axis(names, best, 1)

    def sort(self) -> tuple[Positions, Vectors]:
        """Return neighbors and their cosines, best first."""
        order = np.argsort(-self._similarity, axis=1, kind="stable")
        return (
            np.take_along_axis(self._neighbors, order, 1),
            np.take_along_axis(self._similarity, order, 1),
        )
