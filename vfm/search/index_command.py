"""`vfm index`: an index of a store for quick search, with the recall that was asked for."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import asdict

from vfm.embed.store import EmbeddingStore, lock_store
from vfm.search.index import EXACT_UP_TO, build_index


def index(store: str, *, recall: float = 0.95, json: bool = False) -> None:
    """Build an index of a store, at settings whose recall is measured against exact search.

    Args:
        store: Folder or address of the embeddings that `vfm embed` wrote.
        recall: Fraction of the true nearest that answers shall hold, in the mean.
        json: Print JSON, one object.

    Raises:
        StoreError: There is no such store, or another process writes to it.
        OptionError: The recall cannot be.
        DataError: There are too few rows.
    """
    with lock_store(store):
        opened = EmbeddingStore.open(store)
        facts = build_index(
            opened,
            recall,
            progress=lambda text: print(text, file=sys.stderr, flush=True),
        )
    if json:
        print(json_format.dumps(asdict(facts)))
        return
    print(
        f"Partitions of about {facts.partition_size:,} of {facts.num_rows:,} rows, built in {facts.seconds:.0f} s."
    )
    for setting in facts.settings:
        warning = "" if setting.recall >= recall else f", BELOW the {recall:g} that was asked for"
        print(
            f"Recall@{setting.count} {setting.recall:.3f}{warning}, {setting.milliseconds:.1f} ms a query "
            f"(median of {facts.num_queries}), {setting.num_probes} partitions looked into."
        )
    if facts.num_rows <= EXACT_UP_TO:
        print(
            f"vfm search does without it up to {EXACT_UP_TO:,} rows, where exact search is quick."
        )
