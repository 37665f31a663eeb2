"""Search in a store: exact against a bare product, and the index with a measured recall against other indexes.

    python tests/benchmarks/search.py [--quick] [--rows 1000000] [--only exact|index]

Rows and queries: see search_rows.py. `ours` of the first case is exact search in rows that are in memory, `theirs` is
`X @ q` with argpartition, in turns. The other cases are a line each: the seconds to build, the median time of a query,
and recall@10 on real queries of whose images the store has none. LanceDB's defaults stand beside, and faiss where it is
installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from search_rows import Vectors, draw_rows
from sides import in_turns, report, seconds

from vfm.embed.store import EmbeddingStore, StoreModel
from vfm.search.exact import load_block, search_blocks, search_store
from vfm.search.index import IndexFacts, build_index, search_index

COUNT = 10


def fill_store(folder: Path, rows: Vectors) -> EmbeddingStore:
    model = StoreModel(
        fingerprint="benchmark",
        model="benchmark",
        base=None,
        source="pooled",
        normalize=True,
        width=rows.shape[1],
    )
    store = EmbeddingStore.create(str(folder), model, [])
    for start in range(0, len(rows), 50_000):
        block = rows[start : start + 50_000]
        paths = [f"/images/{start + index:08d}.jpg" for index in range(len(block))]
        store.write(block, {"path": paths})
    store.compact()
    return store


def compare_exact(store: EmbeddingStore, queries: Vectors, rounds: int) -> None:
    block = load_block(store)
    vectors = block.vectors

    def search_ours() -> float:
        return seconds(lambda: [search_blocks([block], q[None], count=COUNT) for q in queries])

    def search_bare() -> float:
        def work() -> None:
            for query in queries:
                similarity = vectors @ query
                np.argpartition(-similarity, COUNT)[:COUNT]

        return seconds(work)

    ours, theirs, ratio = in_turns(search_ours, search_bare, rounds)
    scale = 1000 / len(queries)
    report(
        f"exact search of {len(vectors):,} x {vectors.shape[1]} in memory, against X @ q and argpartition",
        ours * scale,
        theirs * scale,
        "ms",
        1 / ratio,
    )
    from_disk = [seconds(lambda q=q: search_store(store, q, count=COUNT)) for q in queries[:5]]
    say("exact search, read from the store", len(vectors), None, statistics.median(from_disk), 1.0)


def say(name: str, num_rows: int, build: float | None, query: float, recall: float) -> None:
    row = {
        "name": name,
        "rows": num_rows,
        "build_s": None if build is None else round(build, 1),
        "p50_ms": round(1000 * query, 2),
        "recall_at_10": round(recall, 4),
    }
    print(json.dumps(row), flush=True)


def judge(
    name: str,
    rows: Vectors,
    queries: Vectors,
    build: float | None,
    find: Callable[[Vectors], Sequence[int]],
) -> None:
    """Print the median time and the recall of a way to find the positions of the nearest rows."""
    times, recalls = [], []
    for query in queries:
        start = time.perf_counter()
        positions = list(find(query))
        times.append(time.perf_counter() - start)
        similarity = rows @ query
        least = np.partition(similarity, len(rows) - COUNT)[-COUNT]
        recalls.append(float((similarity[positions] >= least - 1e-5).sum()) / COUNT)
    say(name, len(rows), build, statistics.median(times), statistics.fmean(recalls))


def read_position(path: str) -> int:
    return int(Path(path).stem)


def compare_indexes(
    store: EmbeddingStore, rows: Vectors, queries: Vectors, *, defaults: bool
) -> None:
    start = time.perf_counter()
    build_index(store, 0.95)
    seconds_all = time.perf_counter() - start
    facts = IndexFacts.read(store)
    assert facts is not None

    def find_ours(query: Vectors) -> list[int]:
        result = search_index(store, facts, query, count=COUNT)
        return [read_position(one.path) for one in result.neighbors]

    judge("vfm index, built", rows, queries, facts.seconds, find_ours)
    setting = facts.settings[0]
    print(
        json.dumps(
            {
                "name": "vfm index, as it says of itself",
                "rows": len(rows),
                "build_and_measure_s": round(seconds_all, 1),
                "p50_ms": setting.milliseconds,
                "recall_at_10": setting.recall,
                "probes": setting.num_probes,
            }
        )
    )
    if defaults:
        table: Any = store._table
        start = time.perf_counter()
        table.create_index("vector", config=_default_index(), name="vfm", replace=True)
        build = time.perf_counter() - start

        def find_theirs(query: Vectors) -> list[int]:
            search = table.search(query, vector_column_name="vector").distance_type("cosine")
            found_rows = search.limit(COUNT).select(["path", "_distance"]).to_list()
            return [read_position(row["path"]) for row in found_rows]

        judge("LanceDB's defaults", rows, queries, build, find_theirs)
    try:
        import faiss
    except ImportError:
        print(json.dumps({"name": "faiss", "skipped": "not installed"}))
        return
    faiss.omp_set_num_threads(2)
    start = time.perf_counter()
    graph = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.add(rows)
    build = time.perf_counter() - start
    graph.hnsw.efSearch = 64
    judge(
        "faiss, HNSW of 32 links, efSearch 64, in memory",
        rows,
        queries,
        build,
        lambda query: graph.search(query[None], COUNT)[1][0].tolist(),
    )


def _default_index() -> Any:
    from lancedb.index import IvfPq

    return IvfPq(distance_type="cosine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 rows, without the others")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", choices=["exact", "index"])
    options = parser.parse_args()
    num_rows = 20_000 if options.quick else options.rows
    rows, queries = draw_rows(num_rows)
    queries = queries[: 50 if options.quick else 200]
    with tempfile.TemporaryDirectory() as folder:
        store = fill_store(Path(folder) / "store", rows)
        if options.only != "index":
            compare_exact(store, queries[:20], 3 if options.quick else 7)
        if options.only != "exact":
            compare_indexes(store, rows, queries, defaults=not options.quick)


if __name__ == "__main__":
    main()
