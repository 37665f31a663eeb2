"""`vfm index`: an index of a store for quick search with the recall asked for, or its rows in a bundle."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import asdict
from pathlib import Path

from vfm_runtime.errors import OptionError

from vfm.embed.location import lock_store
from vfm.embed.store import EmbeddingStore
from vfm.search.index import EXACT_UP_TO, build_index


def index(
    store: str,
    *,
    recall: float | None = None,
    bundle: Path | None = None,
    out: Path | None = None,
    where: str | None = None,
    json: bool = False,
) -> None:
    """Build an index of a store at settings whose recall is measured, or write a bundle that carries its rows.

    Args:
        store: Folder or address of the embeddings that `vfm embed` wrote.
        recall: Fraction of the true nearest that answers of the index shall hold, in the mean; 0.95 by default.
        bundle: In place of an index: bundle of the store's model, of which a copy shall carry the rows, 50,000 at most.
        out: Folder to write that copy to; -o for short.
        where: Only rows for which this holds go into the bundle, such as "label = 'cat' and split = 'train'".
        json: Print JSON, one object.

    Raises:
        StoreError: There is no such store, it holds vectors of another model, or another process writes to it.
        OptionError: The recall cannot be, options do not go together, or there are too many rows for a bundle.
        DataError: There are too few rows.
    """
    if bundle is not None:
        if out is None or recall is not None:
            raise OptionError(
                f"--bundle {bundle} writes a copy that carries the rows, and all of them are compared. "
                f"{'Name its folder with -o OUT.' if out is None else 'Leave --recall out.'}"
            )
        # The index itself is built without torch, which takes seconds to import.
        from vfm.search.vector_bundle import write_vector_bundle

        table = write_vector_bundle(store, bundle, out, where=where)
        if json:
            print(json_format.dumps({"bundle": str(out), "num_rows": len(table.vectors)}))
            return
        print(
            f"{out}: {bundle} with the vectors of {len(table.vectors):,} images, {table.vectors.nbytes / 2**20:.1f} MiB"
            f"\nTry it: vfm-runtime search {out} {table.paths[0]}"
        )
        return
    if out is not None or where is not None:
        raise OptionError(
            f"--{'out' if out is not None else 'where'} goes with --bundle, which says what to write the rows into. "
            "Leave it out: an index lies in the store, and is of all rows."
        )
    recall = 0.95 if recall is None else recall
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
