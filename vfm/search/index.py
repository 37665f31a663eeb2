"""Approximate search: an index of the store whose recall is measured, kept beside it, and said with every answer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import sqrt
from typing import Self

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.search import Neighbor

from vfm.embed.store import EmbeddingStore
from vfm.search.exact import SearchResult, check_query, read_blocks, search_blocks

EXACT_UP_TO = 200_000
"""Rows up to which exact search is quick enough for nobody to want an index."""
COUNTS = (10, 100)
"""Numbers of neighbors for which recall is measured; more are searched for exactly."""

_FEWEST = 1000
_NUM_QUERIES = 200
"""Rows that settings are chosen by, and as many others that the recall is measured on."""
_REFINES = (2, 4, 8, 16)
_COPIES = 20
"""Nearest rows that a row is also looked for without: its copies, such as a burst, which a new image does not have."""
_TIE = 1e-5

Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class IndexSetting:
    """Options of a query for so many neighbors, with the recall and the time that were measured with them."""

    count: int
    """Neighbors at most."""
    num_probes: int
    """Partitions that are looked into."""
    refine: int
    """Multiple of the count whose exact distances are computed."""
    recall: float
    """Fraction of the true nearest that were among them, mean of the queries; the lower of with and without copies."""
    milliseconds: float
    """Median time of a query."""


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """Recall, time and size of an index, measured when it was built."""

    wanted: float
    """Recall that was asked for."""
    num_rows: int
    """Rows that it was measured with."""
    num_queries: int
    """Rows that were looked for, each without itself; others than those that settings were chosen by."""
    partition_size: int
    """Rows in a cell of k-means, in the mean."""
    date: str
    """Day of the measurement."""
    seconds: float
    """Time that it took to build."""
    settings: Sequence[IndexSetting]
    """One for each number of neighbors, the smallest first."""
    num_written: int = 0
    """Rows written since."""

    @classmethod
    def read(cls, store: EmbeddingStore) -> Self | None:
        """Return the facts of a store's index; None where it has none."""
        facts = store.read_index_facts()
        if facts is None:
            return None
        settings = [IndexSetting(**setting) for setting in facts.pop("settings")]
        return cls(**facts, settings=settings)

    def select(self, count: int) -> IndexSetting | None:
        """Return the setting for a number of neighbors; None where recall was measured for fewer alone."""
        return next((setting for setting in self.settings if setting.count >= count), None)

    def describe(self, setting: IndexSetting) -> str:
        """Say what the recall of an answer is, and what it was measured on."""
        text = (
            f"Recall@{setting.count} {setting.recall:.3f} (through an index; measured on {self.date} with "
            f"{self.num_queries} of {self.num_rows:,} rows, {self.wanted:g} was asked for)"
        )
        if self.num_written:
            text += (
                f". STALE: {self.num_written:,} rows were written since. Measure again with vfm index, or search "
                "with --exact true"
            )
        return text


@dataclass(frozen=True)
class RecallTrial:
    """A row that is looked for, and what is truly nearest to it, itself perhaps among them."""

    query: Vectors
    """Its vector, [D]."""
    path: str
    """By which the store knows it."""
    truth: Sequence[Neighbor]
    """The nearest by exact search."""


def search_index(
    store: EmbeddingStore,
    facts: IndexFacts,
    query: Vectors,
    *,
    count: int = 10,
    columns: Sequence[str] = (),
) -> SearchResult:
    """Find nearly all of the vectors with the largest cosine, through the index.

    Args:
        store: Store of the model that the query was embedded by.
        facts: Facts of its index, which has a setting for so many neighbors.
        query: Vector to look for, float32 [D].
        count: Number of neighbors to return at most.
        columns: Columns of the neighbors to read besides their path.

    Raises:
        OptionError: The count is below 1, or above those that recall was measured for.
        DataError: The query has another width, or is zero.
    """
    check_query(store, query, count)
    setting = facts.select(count)
    if setting is None:
        raise OptionError(
            f"-k is {count}, and the index was measured for up to {facts.settings[-1].count}. Search exactly."
        )
    names = list(dict.fromkeys(["path", *columns]))
    options = {"num_probes": setting.num_probes, "refine": setting.refine}
    rows = store.search_index(query, names, count=count, **options)
    neighbors = [
        Neighbor(row["path"], 1 - row["_distance"], {name: row[name] for name in columns})
        for row in rows
    ]
    neighbors.sort(key=lambda one: (-one.similarity, one.path))
    return SearchResult(neighbors, store.num_rows, setting.recall)


def build_index(
    store: EmbeddingStore,
    recall: float = 0.95,
    *,
    progress: Callable[[str], None] | None = None,
) -> IndexFacts:
    """Build an index, and look for the quickest settings that reach a recall, measured against exact search.

    Args:
        store: Store, which this process alone writes to.
        recall: Fraction of the true nearest that answers shall hold, in the mean.
        progress: Told what is being done.

    Raises:
        OptionError: The recall is none.
        DataError: There are too few rows to measure with.
    """
    if not 0 < recall < 1:
        raise OptionError(
            f"--recall is {recall:g}. Give a fraction below 1, such as 0.95; 1 is exact search, without an index."
        )
    num_rows = store.num_rows
    if num_rows < _FEWEST:
        raise DataError(
            f"{store.uri} has {num_rows:,} rows; recall is measured with at least {_FEWEST:,}. Search without an "
            f"index: up to {EXACT_UP_TO:,} rows exact search is quick."
        )
    tell = progress or (lambda _: None)
    size = round(sqrt(num_rows))
    tell(f"building partitions of about {size:,} rows of {num_rows:,}")
    start = time.perf_counter()
    store.create_index(size)
    seconds = time.perf_counter() - start
    tell(f"built in {seconds:.0f} s; searching exactly for {2 * _NUM_QUERIES} rows to measure with")
    queries, paths = store.sample(2 * _NUM_QUERIES)
    truth = search_blocks(read_blocks(store), queries, count=COUNTS[-1] + _COPIES + 1)
    trials = [
        RecallTrial(query, path, result.neighbors)
        for query, path, result in zip(queries, paths, truth, strict=True)
        if np.linalg.norm(query) > 0
    ]
    order = np.random.default_rng(0).permutation(len(trials)).tolist()
    half = len(trials) // 2
    halves = [trials[i] for i in order[:half]], [trials[i] for i in order[half:]]
    settings = []
    for count in COUNTS:
        setting = _choose_setting(store, halves, count, recall, num_rows // size)
        tell(f"recall@{count} {setting.recall:.3f} by {setting.num_probes} partitions")
        settings.append(setting)
    facts = IndexFacts(
        wanted=recall,
        num_rows=num_rows,
        num_queries=len(halves[1]),
        partition_size=size,
        date=datetime.now(UTC).date().isoformat(),
        seconds=round(seconds, 1),
        settings=settings,
    )
    store.write_index_facts(asdict(facts))
    return facts


def _choose_setting(
    store: EmbeddingStore,
    halves: tuple[Sequence[RecallTrial], Sequence[RecallTrial]],
    count: int,
    wanted: float,
    cells: int,
) -> IndexSetting:
    """Find the fewest probes that reach a recall on one half of the trials, and measure them on the other."""

    def reaches(num_probes: int, refine: int) -> bool:
        asked = {"count": count, "num_probes": num_probes, "refine": refine}
        return _measure(store, halves[0], asked, skip=_COPIES)[0] >= wanted

    for refine in _REFINES:
        low, high = 0, min(8, cells)
        while high < cells and not reaches(high, refine):
            low, high = high, min(2 * high, cells)
        while high - low > max(1, high // 6):
            middle = (low + high) // 2
            low, high = (low, middle) if reaches(middle, refine) else (middle, high)
        # What was just enough for one half may be too little for the other.
        while True:
            setting = measure_setting(store, halves[1], count, high, refine)
            if setting.recall >= wanted or high >= cells:
                break
            high = min(high + max(1, high // 4), cells)
        if setting.recall >= wanted:
            break
    return setting


def measure_setting(
    store: EmbeddingStore, trials: Sequence[RecallTrial], count: int, num_probes: int, refine: int
) -> IndexSetting:
    """Look for some rows through the index, with and without their copies, and return recall and median time.

    Args:
        store: Store with an index.
        trials: Rows to look for.
        count: Number of neighbors that are asked for.
        num_probes: Partitions to look into.
        refine: Multiple of the count whose exact distances are computed.
    """
    asked = {"count": count, "num_probes": num_probes, "refine": refine}
    recall, milliseconds = _measure(store, trials, asked)
    without_copies, _ = _measure(store, trials, asked, skip=_COPIES)
    lower = round(min(recall, without_copies), 4)
    return IndexSetting(**asked, recall=lower, milliseconds=round(milliseconds, 2))


def _measure(
    store: EmbeddingStore, trials: Sequence[RecallTrial], asked: Mapping[str, int], skip: int = 0
) -> tuple[float, float]:
    """Return mean recall and median milliseconds, of neighbors after some that do not count."""
    recalls, seconds = [], []
    last = skip + asked["count"]
    for trial in trials:
        start = time.perf_counter()
        rows = store.search_index(trial.query, ["path"], **{**asked, "count": last + 1})
        seconds.append(time.perf_counter() - start)
        true = [one.similarity for one in trial.truth if one.path != trial.path][:last]
        window = true[min(skip, len(true) - 1)] + _TIE, true[-1] - _TIE
        similar = [1 - row["_distance"] for row in rows if row["path"] != trial.path]
        hits = sum(window[1] <= value <= window[0] for value in similar)
        recalls.append(min(hits / asked["count"], 1.0))
    return statistics.fmean(recalls), 1000 * statistics.median(seconds)
