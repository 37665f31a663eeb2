"""Query map: a rotation from one model's vectors to another's (orthogonal Procrustes), and the recall that it loses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.embedding import EmbeddingSpec

from vfm.embed.location import connect_database, explain_failure
from vfm.embed.store import MAP_TABLE, NEXT_TABLE, EmbeddingStore, StoreModel

NUM_FITTED = 4096
"""Images at most that a map is fitted on."""
NUM_QUERIES = 500
"""Other images at most that its recall is measured on."""
FEWEST = 100
"""Images of a store below which no map is fitted."""
COUNT = 10
"""Nearest images that recall counts."""

_KEY = b"vfm"
_HELD_OUT = 8
"""One image of so many, by its path, is never fitted on."""
Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MapFacts:
    """What was measured of a map."""

    model: str
    """Model whose vectors are mapped."""
    num_fitted: int
    """Images that it was fitted on."""
    num_queries: int
    """Other images that were looked for."""
    num_rows: int
    """Images that they were looked for among."""
    recall: float
    """Fraction of the 10 nearest by the new model that are among the 10 nearest of the mapped query."""
    recall_of_old: float
    """The same of the old model's own vector of the image: what a query without a map would find."""

    def describe(self) -> str:
        """Say what is lost, and what it was measured on."""
        return (
            f"recall@{COUNT} {self.recall:.3f} (a loss of {1 - self.recall:.3f}; a query by the old model has "
            f"{self.recall_of_old:.3f}), measured on {self.num_queries:,} held-out images against exact search by "
            f"{self.model} among {self.num_rows:,}"
        )


@dataclass(frozen=True, eq=False)
class QueryMap:
    """A linear map of a model's vectors, [D], to those of a store, [E]."""

    facts: MapFacts
    matrix: Vectors
    """[D, E]."""

    def apply(self, vectors: Vectors) -> Vectors:
        """Return vectors [..., D] as the store's model would have them, [..., E]."""
        return np.asarray(vectors @ self.matrix, np.float32)

    @classmethod
    def find(cls, store: EmbeddingStore, model: EmbeddingSpec | StoreModel) -> Self | None:
        """Return the map of a store that is being migrated to a model; None where it is not, or has none yet."""
        following = EmbeddingStore.find(store.uri, NEXT_TABLE)
        if following is None or not following.model.is_made_by(model):
            return None
        database = connect_database(store.uri)
        if MAP_TABLE not in database.list_tables().tables:
            return None
        table = database.open_table(MAP_TABLE)
        rows = table.to_arrow().sort_by("row").column("vector").combine_chunks()
        matrix = rows.flatten().to_numpy().reshape(-1, store.model.width)
        return cls(MapFacts(**json.loads(table.schema.metadata[_KEY])), matrix)

    def write(self, store: EmbeddingStore) -> None:
        """Keep it beside the vectors of a store."""
        import pyarrow as pa

        width = self.matrix.shape[1]
        schema = pa.schema(
            [("row", pa.int32()), ("vector", pa.list_(pa.float32(), width))],
            metadata={_KEY: json.dumps(asdict(self.facts))},
        )
        flat = pa.FixedSizeListArray.from_arrays(pa.array(self.matrix.ravel()), width)
        table = pa.table([pa.array(range(len(self.matrix)), pa.int32()), flat], schema=schema)
        with explain_failure(store.uri):
            database = connect_database(store.uri)
            # LanceDB warns where there is nothing to overwrite.
            mode = "overwrite" if MAP_TABLE in database.list_tables().tables else "create"
            database.create_table(MAP_TABLE, table, mode=mode)


def fit_query_map(store: EmbeddingStore, following: EmbeddingStore) -> QueryMap:
    """Fit a map on images that both tables have, and measure it on others of them.

    Args:
        store: Vectors of the old model.
        following: Vectors of the new model of some of the images.
    """
    new = dict(_read_rows(following, None))
    old = dict(_read_rows(store, new))
    paths = sorted(old)
    queries = [path for path in paths if is_held_out(path)][:NUM_QUERIES]
    fitted = [path for path in paths if not is_held_out(path)][:NUM_FITTED]
    matrix = fit_rotation(*(np.stack([rows[path] for path in fitted]) for rows in (new, old)))
    facts = MapFacts(
        model=following.model.model,
        num_fitted=len(fitted),
        num_queries=len(queries),
        num_rows=len(paths),
        recall=0.0,
        recall_of_old=0.0,
    )
    pools = [[(paths, np.stack([rows[path] for path in paths]))] for rows in (old, new)]
    vectors = [np.stack([rows[path] for path in queries]) for rows in (old, new)]
    return _measure(QueryMap(facts, matrix), queries, vectors, pools)


def measure_query_map(
    query_map: QueryMap, store: EmbeddingStore, following: EmbeddingStore
) -> QueryMap:
    """Return a map with the recall that it has against exact search in all vectors of the new model.

    Args:
        query_map: Map from the new vectors to the old.
        store: Vectors of the old model.
        following: Vectors of the new model of all of the images.
    """
    held_out = sorted(path for path in following.read_stamps() if is_held_out(path))
    order = np.random.default_rng(0).permutation(len(held_out))[:NUM_QUERIES]
    wanted = [held_out[i] for i in sorted(order)]
    rows = [dict(_read_rows(one, wanted)) for one in (store, following)]
    queries = [path for path in wanted if path in rows[0]]
    vectors = [np.stack([part[path] for path in queries]) for part in rows]
    pools = [((part["path"], v) for v, part in one.read(["path"])) for one in (store, following)]
    facts = replace(query_map.facts, num_queries=len(queries), num_rows=following.num_rows)
    return _measure(replace(query_map, facts=facts), queries, vectors, pools)


def is_held_out(path: str) -> bool:
    """Whether the image of a path is one of those that a map is measured on, and never fitted on."""
    return crc32(path.encode()) % _HELD_OUT == 0


def fit_rotation(inputs: Vectors, targets: Vectors) -> Vectors:
    """Fit the rotation that brings vectors nearest to others (Schonemann, 1966), or a part of one where widths differ.

    It keeps distances, and with them which vectors are near to each other. Regression with a penalty does not: from
    EfficientNet-Lite1 to Lite0 it lost more of the nearest, and most where there was little to fit it on.

    Args:
        inputs: Vectors to be mapped, [N, D].
        targets: What they shall become, [N, E].

    Returns:
        [D, E], with orthogonal rows or columns.
    """
    units = [
        v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (inputs, targets)
    ]
    u, _, vt = np.linalg.svd(units[0].T @ units[1], full_matrices=False)
    return np.asarray(u @ vt, np.float32)


def _measure(
    query_map: QueryMap,
    paths: Sequence[str],
    vectors: Sequence[Vectors],
    pools: Sequence[Iterable[tuple[Sequence[str], Vectors]]],
) -> QueryMap:
    """Look for images, each without itself, by the mapped, the old and the new vector; the new one's answer is true."""
    old, new = vectors
    queries = np.concatenate([query_map.apply(new), old])
    answers = _find_nearest(queries, [*paths, *paths], pools[0])
    truth = _find_nearest(new, paths, pools[1])
    size = len(paths)
    recalls = [
        float(np.mean([len(a & t) / max(len(t), 1) for a, t in zip(part, truth, strict=True)]))
        for part in (answers[:size], answers[size:])
    ]
    recall, of_old = (round(value, 4) for value in recalls)
    return replace(query_map, facts=replace(query_map.facts, recall=recall, recall_of_old=of_old))


def _find_nearest(
    queries: Vectors, paths: Sequence[str], pool: Iterable[tuple[Sequence[str], Vectors]]
) -> list[set[str]]:
    """Return the paths of the nearest by cosine, but the one of the query itself."""
    best: list[list[tuple[float, str]]] = [[] for _ in queries]
    for names, vectors in pool:
        norms = np.linalg.norm(vectors, axis=1)
        cosines = (queries @ vectors.T) / np.maximum(norms, 1e-12)
        most = min(COUNT + 1, len(names))
        nearest = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        for index, (row, positions) in enumerate(zip(cosines, nearest, strict=True)):
            candidates = [(float(row[i]), names[i]) for i in positions if names[i] != paths[index]]
            best[index] = sorted(best[index] + candidates, reverse=True)[:COUNT]
    return [{path for _, path in one} for one in best]


def _read_rows(store: EmbeddingStore, paths: Iterable[str] | None) -> Iterator[tuple[str, Any]]:
    """Yield path and vector of some rows of a store, or of all."""
    wanted = None if paths is None else set(paths)
    for vectors, rows in store.read(["path"]):
        for path, vector in zip(rows["path"], vectors, strict=True):
            if wanted is None or path in wanted:
                yield path, vector
