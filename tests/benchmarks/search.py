"""Search in a store: exact against a bare product, and the index with a measured recall against other indexes.

    python tests/benchmarks/search.py [--quick] [--rows 994000] [--only exact|index|duplicates] [--alone]
        [--set images|texts]

Rows and queries: see search_rows.py. `ours` of the first case is exact search in rows that are in memory, `theirs` is
`X @ q` with argpartition, in turns. The other cases are a line each: the seconds to build, the median time of a query
that was asked before, and recall@10 on real queries of whose images the store has none. LanceDB's defaults stand
beside, and faiss where it is installed. The last line is of near-duplicates: pairs as close as the closest tenth of
nearest neighbors, the recall that vfm says, that of other rows compared with all, and the memory of a process of its
own, with vectors in a file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from search_rows import SETS, Vectors, draw_rows
from sides import in_turns, report, seconds

from vfm.embed.store import EmbeddingStore, StoreModel
from vfm.search import neighbor_graph
from vfm.search.duplicates import MOST_NEIGHBORS, find_duplicates
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
    list(map(find, queries))  # what stays warm in a process that goes on
    times, answers, recalls = [], [], []
    for query in queries:
        start = time.perf_counter()
        answers.append(list(find(query)))
        times.append(time.perf_counter() - start)
    for query, positions in zip(queries, answers, strict=True):
        similarity = rows @ query
        least = np.partition(similarity, len(rows) - COUNT)[-COUNT]
        recalls.append(float((similarity[positions] >= least - 1e-5).sum()) / COUNT)
    say(name, len(rows), build, statistics.median(times), statistics.fmean(recalls))


def read_position(path: str) -> int:
    return int(Path(path).stem)


def compare_indexes(store: EmbeddingStore, rows: Vectors, queries: Vectors) -> None:
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


def judge_others(store: EmbeddingStore, rows: Vectors, queries: Vectors) -> None:
    """Print what LanceDB's defaults and faiss do; the index of the store is another afterwards."""
    table: Any = store._table
    start = time.perf_counter()
    table.create_index("vector", config=_default_index(), name="vfm", replace=True)
    build = time.perf_counter() - start

    def find_theirs(query: Vectors) -> list[int]:
        search = table.search(query, vector_column_name="vector").distance_type("cosine")
        neighbors = search.limit(COUNT).select(["path", "_distance"]).to_list()
        return [read_position(row["path"]) for row in neighbors]

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


def judge_duplicates(store: EmbeddingStore, rows: Vectors) -> None:
    """Find near-duplicates in a process of its own, and compare 1,000 of the rows with all."""
    checked = np.random.default_rng(7).permutation(len(rows))[:1000]
    nearest, above = [], []
    for start in range(0, len(checked), 100):
        part = checked[start : start + 100]
        similarity = rows[part] @ rows.T
        similarity[np.arange(len(part)), part] = -2
        nearest += similarity.max(1).tolist()
        threshold = float(np.quantile(nearest[:100], 0.9))  # of the first part for all
        for row, values in zip(part.tolist(), similarity, strict=True):
            best = np.argsort(-values)[:MOST_NEIGHBORS] if (values >= threshold).any() else []
            above += [tuple(sorted((row, int(i)))) for i in best if values[i] >= threshold]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        facts, paths, others = pool.apply(_time_duplicates, (store.uri, threshold))
    listed = {tuple(sorted(map(read_position, pair))) for pair in zip(paths, others, strict=True)}
    recall = sum(pair in listed for pair in above) / len(above)
    facts |= {"recall_checked": round(recall, 4), "pairs_checked": len(above)}
    print(json.dumps({"name": "near-duplicates", "rows": len(rows)} | facts), flush=True)


def read_peak() -> int:
    """Return the largest resident memory of this process since it began, in KiB, with the pages of mapped files."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.partition("VmHWM:")[2].split()[0])


def _time_duplicates(uri: str, threshold: float) -> tuple[dict[str, Any], list[str], list[str]]:
    neighbor_graph._IN_MEMORY = 0
    store = EmbeddingStore.open(uri)
    at_start = read_peak()
    start = time.perf_counter()
    with neighbor_graph.open_rows(store) as block:
        begin = time.perf_counter()
        pairs = find_duplicates(block, threshold)
        end = time.perf_counter()
    peak = read_peak()
    facts = {
        "threshold": round(threshold, 4),
        "pairs": len(pairs.first),
        "read_s": round(begin - start, 1),
        "seconds": round(end - begin, 1),
        "cells_compared": pairs.graph.num_probes,
        "peak_gib": round(peak / 2**20, 2),
        "at_start_gib": round(at_start / 2**20, 2),
        "recall_said": pairs.graph.recall,
    }
    ends = [block.rows["path"].take(end).to_pylist() for end in (pairs.first, pairs.second)]
    return facts, *ends


def _default_index() -> Any:
    from lancedb.index import IvfPq

    return IvfPq(distance_type="cosine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 rows, alone")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", choices=["exact", "index", "duplicates"])
    parser.add_argument("--alone", action="store_true", help="without LanceDB's defaults and faiss")
    parser.add_argument("--set", choices=list(SETS), default="images", help="see search_rows.py")
    options = parser.parse_args()
    num_rows = 20_000 if options.quick else options.rows
    rows, queries = draw_rows(num_rows, options.set)
    queries = queries[: 50 if options.quick else 200]
    with tempfile.TemporaryDirectory() as folder:
        store = fill_store(Path(folder) / "store", rows)
        if options.only in (None, "exact"):
            compare_exact(store, queries[:20], 3 if options.quick or num_rows > 500_000 else 7)
        if options.only in (None, "index"):
            compare_indexes(store, rows, queries)
            if not options.quick and not options.alone:
                judge_others(store, rows, queries)
        if options.only in (None, "duplicates"):
            judge_duplicates(store, rows)


if __name__ == "__main__":
    main()
