"""Near-duplicates: pairs of rows whose vectors have a large cosine, in groups, and between splits (leaks)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from vfm_runtime.errors import OptionError

from vfm.search.exact import VectorBlock
from vfm.search.neighbor_graph import NeighborGraph, build_graph

MOST_NEIGHBORS = 10
"""Pairs that are listed of one row; its group is whole all the same."""


@dataclass(frozen=True)
class Duplicates:
    """P pairs of near-duplicates among N rows, the most similar first."""

    first: NDArray[np.int32]
    """Position of one row of each pair, int32 [P]."""
    second: NDArray[np.int32]
    """Position of the other, which stands later in the store, int32 [P]."""
    similarity: NDArray[np.float32]
    """Cosine of each pair, float32 [P]."""
    groups: NDArray[np.int32]
    """Number of the group of each row, from 1 on, int32 [N]; 0 for a row that has no duplicate."""
    graph: NeighborGraph
    """The neighbors that the pairs are of, and how sure it is that they are all."""

    def compare(self, block: VectorBlock, column: str | None) -> NDArray[np.bool_]:
        """Return for each pair whether its two rows have different values of a column, bool [P]."""
        if column is None:
            return np.zeros(len(self.first), bool)
        values = [block.rows[column].take(end).to_pylist() for end in (self.first, self.second)]
        differ = [None not in (a, b) and a != b for a, b in zip(*values, strict=True)]
        return np.array(differ, bool)

    def choose_rows(self) -> NDArray[np.bool_]:
        """Return which rows stay where of near-duplicates the first does, bool [N]: those near no earlier one kept.

        Not one of each group: rows of a long chain of pairs may have little in common.
        """
        stays = np.ones(len(self.groups), bool)
        # What is decided of a row hangs on rows before it alone.
        for pair in np.argsort(self.second, kind="stable").tolist():
            if stays[self.first[pair]]:
                stays[self.second[pair]] = False
        return stays


def find_duplicates(
    block: VectorBlock,
    threshold: float = 0.95,
    *,
    between: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Duplicates:
    """Find the pairs of rows whose cosine reaches a threshold.

    Args:
        block: Rows of a store, of `open_rows`.
        threshold: Least cosine of a pair.
        between: Column in which the rows of a pair must differ; a row without a value differs from none.
        progress: Told what is being done.

    Raises:
        OptionError: The threshold is no cosine.
    """
    if not 0 < threshold <= 1:
        raise OptionError(
            f"--threshold is {threshold:g}. Give a cosine above 0 and up to 1, such as 0.95; 1 is a copy."
        )
    # A copy's cosine with itself is a little below 1 in 32 bits, and further below in a store of 16.
    least = min(threshold, 1 - 1e-5)
    values = None
    if between is not None:
        column = block.rows[between].combine_chunks().dictionary_encode()
        values = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    graph = build_graph(
        block.vectors, MOST_NEIGHBORS, least=least, values=values, progress=progress
    )
    rows, ranks = np.nonzero(graph.neighbors >= 0)
    others = graph.neighbors[rows, ranks]
    ends = np.sort(np.stack([rows.astype(np.int32), others]), axis=0)
    num_rows = len(block.vectors)
    _, positions = np.unique(ends[0].astype(np.int64) * num_rows + ends[1], return_index=True)
    first, second = ends[:, positions]
    similarity = graph.similarity[rows, ranks][positions]
    order = np.lexsort([second, first, -similarity])
    first, second, similarity = first[order], second[order], similarity[order]
    return Duplicates(first, second, similarity, _number_groups(first, second, num_rows), graph)


def _number_groups(first: Any, second: Any, num_rows: int) -> NDArray[np.int32]:
    """Return the number of the connected component of each row, in the order of the pairs; 0 for a single row."""
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(num_rows, num_rows))
    _, components = connected_components(links, directed=False)
    numbers = np.zeros(components.max() + 1, np.int32)
    _, positions = np.unique(components[first], return_index=True)
    for number, position in enumerate(np.sort(positions), 1):
        numbers[components[first[position]]] = number
    groups: NDArray[np.int32] = numbers[components]
    return groups
