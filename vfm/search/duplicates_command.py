"""`vfm duplicates`: near-duplicates of a store, and leaks between its splits, as a table, CSV and a page."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from vfm_runtime.errors import OptionError

from vfm.embed.store import EmbeddingStore
from vfm.report import Page, draw_contact_sheet
from vfm.search.duplicates import MOST_NEIGHBORS, Duplicates, find_duplicates
from vfm.search.exact import VectorBlock
from vfm.search.neighbor_graph import open_rows
from vfm.search.options import check_table, open_filtered, require_column, write_table
from vfm.search.pictures import open_picture

_SHOWN = 10
_DRAWN = 30
"""Pairs on a page."""
_MANY = 0.2
"""Fraction of rows with a duplicate above which the threshold is likely too low for this model and these images."""


def duplicates(
    store: str,
    *,
    threshold: float = 0.95,
    between: str | None = None,
    where: str | None = None,
    export: Path | None = None,
    keep_table: Path | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Find images of a store that are nearly the same, and those of them that lie in two splits.

    Args:
        store: Folder or address of the embeddings that `vfm embed` wrote.
        threshold: Least cosine of two images.
        between: Only pairs that differ in this column, such as split: leaks.
        where: Only among rows for which this holds, such as "label = 'cat'".
        export: Table of all pairs to write, a .csv file.
        keep_table: Table to write, a .csv file, of the images that stay where of near-duplicates one does: to train on.
        out: HTML page to write, with the pictures of the first pairs; -o for short.
        json: Print JSON, one object with all pairs.

    Raises:
        StoreError: There is no such store.
        FilterError: The filter is none.
        OptionError: The threshold or the column cannot be.
    """
    opened, expression, columns = open_filtered(store, where)
    require_column("--between", between, store, columns)
    check_table(export)
    check_table(keep_table, "--keep_table")
    if keep_table is not None and between is not None:
        raise OptionError(
            f"--keep_table and --between {between} cannot go together: pairs that agree in {between} would stay. Leave "
            "one of them out."
        )
    with open_rows(opened, [*columns, "sha256"], expression) as block:
        split = between or ("split" if "split" in columns else None)
        values = [] if split is None else block.rows[split].drop_null().unique().to_pylist()
        if len(values) < 2:
            if between is not None:
                value = values[0] if values else "no value"
                raise OptionError(
                    f"--between is '{between}', in which all rows have {value}, so no two can differ. "
                    "Name another column, or leave it out for all pairs."
                )
            split = None
        pairs = find_duplicates(
            block,
            threshold,
            between=between,
            progress=lambda text: print(text, file=sys.stderr, flush=True),
        )
        is_leak = pairs.compare(block, split)
        lines = _describe(block, pairs, is_leak, split, threshold)
        if json:
            facts = {"threshold": threshold, "recall": pairs.graph.recall}
            rows = list(_iterate_rows(block, pairs, columns))
            print(json_format.dumps({**facts, "num_rows": len(block.vectors), "pairs": rows}))
        else:
            for row in islice(_iterate_rows(block, pairs, columns), _SHOWN):
                print(f"{row['similarity']:.4f}  {row['path']}  {row['other_path']}")
            print("\n".join(lines))
        if export is not None:
            write_table(export, _name_columns(columns), _iterate_rows(block, pairs, columns))
            print(f"Pairs: {export}", file=sys.stderr if json else sys.stdout)
        if keep_table is not None:
            positions = np.flatnonzero(pairs.choose_rows())
            rows = block.rows.select(["path", *columns]).take(positions).to_pylist()
            write_table(keep_table, ["path", *columns], rows)
            print(
                f"Kept: {len(rows):,} of {len(block.vectors):,} images, each other one near one of them: {keep_table}",
                file=sys.stderr if json else sys.stdout,
            )
        if out is not None:
            _write_page(out, opened, block, pairs, is_leak, columns, lines)
            print(f"Pictures: {out}", file=sys.stderr if json else sys.stdout)


def _describe(
    block: VectorBlock, pairs: Duplicates, is_leak: Any, split: str | None, threshold: float
) -> list[str]:
    num_rows, graph = len(block.vectors), pairs.graph
    num_twins = int((pairs.groups > 0).sum())
    text = (
        f"{len(pairs.first):,} pairs of a cosine from {threshold:g} on; {num_twins:,} of {num_rows:,} rows have such a "
        f"neighbor, in {pairs.groups.max():,} groups."
    )
    if split is not None:
        text += f" {int(is_leak.sum()):,} pairs lie in two values of '{split}'."
    lines = [text]
    if graph.num_probes:
        lines.append(
            f"Recall {graph.recall:.3f}, measured on {graph.num_pairs:,} neighbors of a sample that was compared with "
            f"every row; each row was compared with the {graph.num_probes} nearest of {num_rows // 1000:,} cells."
        )
    else:
        lines.append("Recall 1 (exact): every two rows were compared.")
    if (graph.neighbors[:, -1] >= 0).any():
        lines.append(
            f"Some rows have more such neighbors than the {MOST_NEIGHBORS} nearest, which are listed."
            + (
                f" --between {split} lists those in two values."
                if split and not is_leak.all()
                else ""
            )
        )
    if num_twins > _MANY * num_rows:
        nearest = graph.similarity[pairs.groups > 0, 0]
        high = np.quantile(nearest, 0.99)
        lines.append(
            f"That is {num_twins / num_rows:.0%} of the rows: to this model many images here look alike, and "
            f"{threshold:g} says little. Their nearest neighbor's cosine is {np.median(nearest):.4f} in the median, "
            f"{high:.4f} for the closest hundredth; try --threshold {high:.4f}."
        )
    return lines


def _name_columns(columns: list[str]) -> list[str]:
    ends = [name for column in ["path", *columns] for name in (column, f"other_{column}")]
    return ["group", "similarity", "same_bytes", *ends]


def _iterate_rows(
    block: VectorBlock, pairs: Duplicates, columns: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield each pair as a row of a table."""
    names = ["path", *columns]
    for start in range(0, len(pairs.first), 1000):
        part = slice(start, start + 1000)
        ends = [block.rows.take(end[part]).to_pylist() for end in (pairs.first, pairs.second)]
        for number, (one, other) in enumerate(zip(*ends, strict=True), start):
            values = [(name, row) for name in names for row in (one, other)]
            yield dict(
                zip(
                    _name_columns(columns),
                    (
                        int(pairs.groups[pairs.first[number]]),
                        round(float(pairs.similarity[number]), 6),
                        one["sha256"] == other["sha256"],
                        *(row[name] for name, row in values),
                    ),
                    strict=True,
                )
            )


def _write_page(
    out: Path,
    store: EmbeddingStore,
    block: VectorBlock,
    pairs: Duplicates,
    is_leak: Any,
    columns: list[str],
    lines: list[str],
) -> None:
    """Write a page with the first pairs side by side, those between splits in red frames."""
    page = Page("Near-duplicates", store.uri)
    page.add_facts({"pairs": len(pairs.first), "between splits": int(is_leak.sum())})
    for line in lines:
        page.add_text(line)
    rows = list(islice(_iterate_rows(block, pairs, columns), _DRAWN))
    if rows:
        pictures, captions, marks = [], [], []
        for number, row in enumerate(rows, 1):
            for prefix in ("", "other_"):
                path = row[f"{prefix}path"]
                values = [row.get(f"{prefix}{name}") for name in ("split", "label")]
                told = " ".join(str(value) for value in values if value is not None)
                pictures.append(open_picture(path, store.model.value_range))
                captions.append(f"{number}. {row['similarity']:.4f}\n{told}\n{Path(path).name}")
                marks.append(not is_leak[number - 1])
        page.add_figure(
            draw_contact_sheet(pictures, captions, marks=marks if is_leak.any() else None),
            f"The {len(rows)} most similar pairs, side by side; red frames: between two splits.",
        )
        page.add_table(rows)
    page.write(out)
