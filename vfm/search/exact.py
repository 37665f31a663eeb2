"""Exact search: the cosine of a query with every vector of a store, by matrix products, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import DataError, OptionError

from vfm.embed.store import EmbeddingStore

_TINY = 1e-12


@dataclass(frozen=True)
class Neighbor:
    """An image of a store near to a query."""

    path: str
    """Where the image was embedded from."""
    similarity: float
    """Cosine of the two vectors, -1 to 1."""
    columns: Mapping[str, Any]
    """Other values of its row, such as its label."""


@dataclass(frozen=True)
class SearchResult:
    """The nearest images, best first, and how sure it is that they are."""

    neighbors: list[Neighbor]
    """At most as many as were asked for."""
    num_searched: int
    """Rows that the query was compared with, those of the filter."""
    recall: float = 1.0
    """Fraction of the true nearest that are among them: 1 of an exact search."""


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
    if count < 1:
        raise OptionError(f"-k is {count}. Ask for at least 1 image.")
    if query.shape != (store.model.width,) or not np.linalg.norm(query) > 0:
        raise DataError(
            f"The query has shape {list(query.shape)} and norm {np.linalg.norm(query):g}; the store has vectors of "
            f"{store.model.width} numbers, which are not all 0."
        )
    direction = query / np.linalg.norm(query)
    best: list[Neighbor] = []
    num_searched = 0
    names = list(dict.fromkeys(["path", *columns]))
    for vectors, rows in store.read(names, where):
        num_searched += len(vectors)
        similarity = vectors @ direction
        if not store.model.normalize:
            similarity /= np.maximum(np.linalg.norm(vectors, axis=1), _TINY)
        chosen = np.arange(len(vectors))
        if len(vectors) > count:
            chosen = np.argpartition(-similarity, count - 1)[:count]
        best += [
            Neighbor(
                rows["path"][i],
                float(similarity[i]),
                {name: rows[name][i] for name in columns if name != "path"},
            )
            for i in chosen.tolist()
        ]
        best = sorted(best, key=lambda one: (-one.similarity, one.path))[:count]
    return SearchResult(best, num_searched)
