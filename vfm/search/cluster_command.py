"""`vfm cluster` and `vfm select`: what a store holds, what is odd in it, and which images to label next."""

from __future__ import annotations

import json as json_format
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import OptionError

from vfm.embed.store import EmbeddingStore
from vfm.report import Page, draw_contact_sheet
from vfm.search.clusters import (
    OUTLIER_NEIGHBORS,
    Clusters,
    cluster_rows,
    score_outliers,
    select_rows,
)
from vfm.search.exact import VectorBlock
from vfm.search.neighbor_graph import build_graph, open_rows
from vfm.search.options import check_table, open_filtered, require_column, write_table
from vfm.search.pictures import open_picture

_CENTRAL = 6
"""Pictures of a cluster on the page."""
_ODD = 24
_SHOWN = 5
_DRAWN = 120
"""Chosen images on the page."""


def cluster(
    store: str,
    *,
    k: int = 20,
    where: str | None = None,
    export: Path | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Sort the images of a store into clusters, and list those that are like no other.

    Args:
        store: Folder or address of the embeddings that `vfm embed` wrote.
        k: Number of clusters, from 2 on.
        where: Only rows for which this holds, such as "label = 'cat'".
        export: Table of all images to write, a .csv file, with cluster and outlier score.
        out: HTML page to write, with pictures of each cluster and of the outliers; -o for short.
        json: Print JSON, one object.

    Raises:
        StoreError: There is no such store.
        FilterError: The filter is none.
        OptionError: There cannot be so many clusters.
    """
    opened, expression, columns = open_filtered(store, where)
    check_table(export)
    with open_rows(opened, columns, expression) as block:
        num_rows = len(block.vectors)
        if not 1 < k <= num_rows:
            raise OptionError(
                f"-k is {k}. Give a number of clusters from 2 to {num_rows:,}, the number of rows."
            )
        clusters = cluster_rows(block.vectors, k)
        graph = build_graph(
            block.vectors,
            OUTLIER_NEIGHBORS,
            progress=lambda text: print(text, file=sys.stderr, flush=True),
        )
    scores = score_outliers(graph)
    odd = np.argsort(-scores, kind="stable")[:_ODD]
    table = [_describe_cluster(block, clusters, number) for number in range(len(clusters.sizes))]
    outliers = _read_rows(block, odd, {"outlier": scores})
    how = "measured on a sample" if graph.num_probes else "every two rows were compared"
    note = (
        f"outlier is 1 less the mean cosine of the {OUTLIER_NEIGHBORS} nearest neighbors, of which "
        f"{graph.recall:.3f} are found ({how})."
    )
    if json:
        print(json_format.dumps({"clusters": table, "outliers": outliers, "recall": graph.recall}))
    else:
        for row in table:
            labels = f"  {row['labels']}" if "labels" in row else ""
            print(f"cluster {row['cluster']:>3}  {row['images']:>7,} images{labels}  {row['path']}")
        for row in outliers[:_SHOWN]:
            print(f"outlier {row['outlier']:.3f}  {row['path']}")
        print(note)
    if export is not None:
        everything = np.lexsort((-clusters.similarity, clusters.numbers))
        values: dict[str, NDArray[Any]] = {
            "cluster": clusters.numbers + 1,
            "to_middle": clusters.similarity,
            "outlier": scores,
        }
        rows = _read_rows(block, everything, values)
        write_table(export, list(rows[0]), rows)
        print(f"Table: {export}", file=sys.stderr if json else sys.stdout)
    if out is not None:
        page = Page("Clusters and outliers", store)
        page.add_facts({"images": num_rows, "clusters": len(table)})
        for number, row in enumerate(table):
            page.add_heading(f"Cluster {number + 1}: {row['images']:,} images")
            central = clusters.list_central(number, _CENTRAL)
            rows = _read_rows(block, central, {"to_middle": clusters.similarity})
            _add_sheet(page, opened, rows, "to_middle", row.get("labels", ""))
        page.add_heading("Outliers")
        _add_sheet(
            page,
            opened,
            outliers,
            "outlier",
            f"The images that are like no other, with their score: {note}",
        )
        page.write(out)
        print(f"Pictures: {out}", file=sys.stderr if json else sys.stdout)


def select(
    store: str,
    *,
    k: int = 100,
    labeled: str | None = None,
    where: str | None = None,
    export: Path | None = None,
    out: Path | None = None,
    json: bool = False,
    seed: int = 0,
) -> None:
    """Choose the images of a store to label next: typical ones, of every kind that has few labels yet.

    Args:
        store: Folder or address of the embeddings that `vfm embed` wrote.
        k: Number of images to choose.
        labeled: Column whose rows with a value are labeled already, such as label; by default none is.
        where: Only among rows for which this holds, such as "split = 'train'".
        export: Table of the chosen images to write, a .csv file.
        out: HTML page to write, with the pictures; -o for short.
        json: Print JSON, one object.
        seed: Seed of the clusters.

    Raises:
        StoreError: There is no such store.
        FilterError: The filter is none.
        OptionError: There is no such column, or there are not so many images.
    """
    opened, expression, columns = open_filtered(store, where)
    check_table(export)
    require_column("--labeled", labeled, store, columns)
    with open_rows(opened, columns, expression) as block:
        is_labeled = np.zeros(len(block.vectors), bool)
        if labeled is not None:
            is_labeled = np.array([v is not None for v in block.rows[labeled].to_pylist()])
        chosen, clusters = select_rows(block.vectors, k, is_labeled, seed=seed)
        rows = _read_rows(block, chosen, {"cluster": clusters.numbers + 1})
    note = (
        f"{len(rows):,} of {int((~is_labeled).sum()):,} images without a label, beside {int(is_labeled.sum()):,} "
        f"that have one; {len(clusters.sizes):,} clusters."
    )
    if json:
        print(json_format.dumps({"images": rows}))
    else:
        for row in rows:
            print(row["path"])
        print(note, file=sys.stderr)
    if export is not None:
        write_table(export, list(rows[0]), rows)
        print(f"Table: {export}", file=sys.stderr)
    if out is not None:
        page = Page("To label next", store)
        page.add_text(note)
        shown = rows[:_DRAWN]
        caption = f"The first {len(shown)} images to label, in their order."
        _add_sheet(page, opened, shown, "cluster", caption)
        page.write(out)
        print(f"Pictures: {out}", file=sys.stderr)


def _describe_cluster(block: VectorBlock, clusters: Clusters, number: int) -> dict[str, Any]:
    row: dict[str, Any] = {"cluster": number + 1, "images": int(clusters.sizes[number])}
    if "label" in block.rows.schema.names:
        members = np.flatnonzero(clusters.numbers == number)
        counts = Counter(block.rows["label"].take(members).to_pylist())
        counts.pop(None, None)
        if counts:
            row["labels"] = ", ".join(f"{name} {count}" for name, count in counts.most_common(3))
    path = block.rows["path"][int(clusters.list_central(number, 1)[0])].as_py()
    return row | {"path": path}


def _read_rows(
    block: VectorBlock, positions: NDArray[Any], values: Mapping[str, NDArray[Any]]
) -> list[dict[str, Any]]:
    """Return some rows with values computed of them, the path first."""
    rows: list[dict[str, Any]] = block.rows.take(positions).to_pylist()
    for row, position in zip(rows, positions.tolist(), strict=True):
        path = row.pop("path")
        computed = {name: round(array[position].item(), 5) for name, array in values.items()}
        columns = dict(row)
        row.clear()
        row.update({"path": path, **computed, **columns})
    return rows


def _add_sheet(
    page: Page,
    store: EmbeddingStore,
    rows: Sequence[Mapping[str, Any]],
    name: str,
    caption: str,
) -> None:
    captions = []
    for number, row in enumerate(rows, 1):
        label = "" if row.get("label") is None else row["label"]
        captions.append(f"{number}. {name} {row[name]:.4g}\n{label}\n{Path(row['path']).name}")
    pictures = [open_picture(row["path"], store.model.value_range) for row in rows]
    page.add_figure(draw_contact_sheet(pictures, captions), caption)
