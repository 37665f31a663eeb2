"""Exact search: the cosine of queries with every vector of a store, by matrix products, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.search import Neighbor, find_nearest

from vfm.embed.store import EmbeddingStore

_TINY = 1e-12


@dataclass(frozen=True)
class SearchResult:
    """The nearest images, best first, and how sure it is that they are."""

    neighbors: list[Neighbor]
    """At most as many as were asked for."""
    num_searched: int
    """Rows that the query was compared with, those of the filter."""
    recall: float = 1.0
    """Fraction of the true nearest that are among them: 1 of an exact search."""


@dataclass(frozen=True)
class VectorBlock:
    """Rows of a store in memory, by which any number of queries can be answered."""

    vectors: NDArray[np.float32]
    """Vectors of norm 1, float32 [N, D]."""
    rows: Any
    """Other columns of the rows, of Arrow."""


def read_blocks(
    store: EmbeddingStore, columns: Sequence[str] = (), where: str | None = None
) -> Iterator[VectorBlock]:
    """Yield the rows of a store, some thousand at a time, with their vectors divided by their norms.

    Args:
        store: Store whose rows are read.
        columns: Columns of the rows to read besides their path.
        where: Expression of the store, as `parse_filter` gives it.
    """
    names = list(dict.fromkeys(["path", *columns]))
    for vectors, rows in store.scan(names, where):
        if not store.model.normalize:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(norms, _TINY)
        yield VectorBlock(vectors, rows)


def load_block(
    store: EmbeddingStore,
    columns: Sequence[str] = (),
    where: str | None = None,
    *,
    vectors: NDArray[np.float32] | None = None,
) -> VectorBlock:
    """Return all rows of a store at once: four bytes a number, for `search_blocks` again and again.

    Args:
        store: Store whose rows are read.
        columns: Columns of the rows to read besides their path.
        where: Expression of the store, as `parse_filter` gives it.
        vectors: Array to read into, float32 [N, D] for all rows of the store; by default a new one.

    Raises:
        DataError: There are no rows.
    """
    import pyarrow as pa

    if vectors is None:
        vectors = np.empty((store.num_rows, store.model.width), np.float32)
    parts, num_rows = [], 0
    for block in read_blocks(store, columns, where):
        vectors[num_rows : num_rows + len(block.vectors)] = block.vectors
        num_rows += len(block.vectors)
        parts.append(block.rows)
    if not num_rows:
        raise DataError(f"{store.uri} has no rows{' that the filter holds for' if where else ''}.")
    return VectorBlock(vectors[:num_rows], pa.Table.from_batches(parts).combine_chunks())


def search_store(
    store: EmbeddingStore,
    query: NDArray[np.float32],
    *,
    count: int = 10,
    where: str | None = None,
    columns: Sequence[str] = (),
) -> SearchResult:
    """Find the vectors of a store with the largest cosine; equal ones in the order of their paths.

    Args:
        store: Store of the model that the query was embedded by.
        query: Vector to look for, float32 [D].
        count: Number of neighbors to return at most.
        where: Expression of the store, as `parse_filter` gives it.
        columns: Columns of the neighbors to read besides their path.

    Raises:
        OptionError: The count is below 1.
        DataError: The query has another width, or is zero.
    """
    check_query(store, query, count)
    return search_blocks(read_blocks(store, columns, where), query[None], count=count)[0]


def check_query(store: EmbeddingStore, query: NDArray[np.float32], count: int) -> None:
    """Refuse a count below 1 with an OptionError, a query of another width or of zeros with a DataError."""
    if count < 1:
        raise OptionError(f"-k is {count}. Ask for at least 1 image.")
    if query.shape != (store.model.width,) or not np.linalg.norm(query) > 0:
        raise DataError(
            f"The query has shape {list(query.shape)} and norm {np.linalg.norm(query):g}; the store has vectors of "
            f"{store.model.width} numbers, which are not all 0."
        )


def search_blocks(
    blocks: Iterable[VectorBlock], queries: NDArray[np.float32], *, count: int = 10
) -> list[SearchResult]:
    """Find the vectors with the largest cosine for each of some queries; equal ones in the order of their paths.

    Args:
        blocks: Rows of a store.
        queries: Vectors to look for, float32 [Q, D], not zero.
        count: Number of neighbors to return at most for each.
    """
    directions = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    best: list[list[Neighbor]] = [[] for _ in queries]
    num_searched = 0
    for block in blocks:
        num_searched += len(block.vectors)
        for query, similarity in enumerate(directions @ block.vectors.T):
            nearest = find_nearest(similarity, count)
            rows = block.rows.take(nearest).to_pylist()
            best[query] += [
                Neighbor(row.pop("path"), float(value), row)
                for row, value in zip(rows, similarity[nearest], strict=True)
            ]
            best[query].sort(key=lambda one: (-one.similarity, one.path))
            del best[query][count:]
    return [SearchResult(neighbors, num_searched) for neighbors in best]
