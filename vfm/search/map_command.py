"""`vfm map`: a page on which the images of a store lie beside those that are like them (PCA or UMAP)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import DataError, MissingPackageError, OptionError

from vfm.report.point_map import write_point_map
from vfm.search.neighbor_graph import open_rows
from vfm.search.options import open_filtered, require_column
from vfm.search.pictures import iterate_thumbnails

MOST_POINTS = 10_000
"""Pictures of a page: each takes about a kilobyte."""

_LEARNED = 20_000
"""Rows that PCA learns from."""


def draw_map(
    store: str,
    *,
    out: Path,
    method: Literal["pca", "umap"] = "pca",
    color: str | None = None,
    where: str | None = None,
    points: int = 2000,
    seed: int = 0,
) -> None:
    """Write a page on which the images of a store lie beside those that are like them, to lasso and save as CSV.

    Args:
        store: Folder or address of the embeddings that `vfm embed` wrote.
        out: HTML page to write; -o for short.
        method: pca, which is quick and keeps what is far apart apart, or umap, which keeps neighbors (vfm[map]).
        color: Column that frames are colored by; by default label, where there is one.
        where: Only rows for which this holds, such as "split = 'train'".
        points: Images on the page at most; of more rows as many are drawn at random.
        seed: Seed of the draw, and of umap.

    Raises:
        StoreError: There is no such store.
        FilterError: The filter is none.
        OptionError: The column or the number of points cannot be.
        MissingPackageError: UMAP is not installed.
    """
    opened, expression, columns = open_filtered(store, where)
    require_column("--color", color, store, columns)
    if not 1 < points <= MOST_POINTS:
        raise OptionError(
            f"--points is {points}. Give a number from 2 to {MOST_POINTS:,}; a page of more would be slow to open."
        )
    if method == "umap":
        _import_umap()
    column = color or ("label" if "label" in columns else None)
    with open_rows(opened, [] if column is None else [column], expression) as block:
        num_rows = len(block.vectors)
        if num_rows < 3:
            raise DataError(f"{store} has {num_rows} such rows. A map takes at least 3.")
        random = np.random.default_rng(seed)
        drawn = np.sort(random.permutation(num_rows)[:points])
        coordinates, note = _project(block.vectors, drawn, method, seed)
        rows = block.rows.take(drawn)
    paths = rows["path"].to_pylist()
    thumbnails = iterate_thumbnails(
        paths, opened.model.value_range, lambda text: print(text, file=sys.stderr, flush=True)
    )
    shown = (
        f"{len(paths):,} of {num_rows:,} images"
        if len(paths) < num_rows
        else f"{num_rows:,} images"
    )
    subtitle = f"{store}{f', where {where}' if where else ''}: {shown}, {note}"
    write_point_map(
        out,
        coordinates,
        list(thumbnails),
        paths,
        title="Map of images",
        subtitle=subtitle,
        column=column,
        values=None if column is None else rows[column].to_pylist(),
    )
    print(f"{shown}, {note}.")
    print(f"Map: {out}")


def _project(
    vectors: NDArray[np.float32], drawn: NDArray[Any], method: str, seed: int
) -> tuple[NDArray[Any], str]:
    """Return coordinates [n, 2] of the drawn rows, and what they are."""
    if method == "umap":
        reducer = _import_umap().UMAP(metric="cosine", random_state=seed)
        return reducer.fit_transform(np.asarray(vectors[drawn])), "UMAP"
    from sklearn.decomposition import PCA

    learned = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:_LEARNED])
    pca = PCA(2, random_state=seed).fit(np.asarray(vectors[learned]))
    part = pca.explained_variance_ratio_.sum()
    return pca.transform(np.asarray(vectors[drawn])), f"PCA: 2 axes hold {part:.0%} of the variance"


def _import_umap() -> Any:
    try:
        import umap
    except ImportError as error:
        raise MissingPackageError(
            "--method umap takes the package umap-learn, which is not installed: pip install 'vfm[map]'. "
            "Or take --method pca."
        ) from error
    return umap
