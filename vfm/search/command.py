"""`vfm search`: the images of a store that are most like another, as a table and as a contact sheet."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from vfm_runtime.media.image import ImageError, Pixels, open_image

from vfm.embed.models import open_embedder
from vfm.embed.sources import RESERVED
from vfm.embed.store import EmbeddingStore
from vfm.report import Page, draw_contact_sheet
from vfm.search.exact import Neighbor, SearchResult, search_store
from vfm.search.filters import parse_filter

_GRAY = np.full((64, 64, 3), 200, np.uint8)


def search(
    store: str,
    *,
    image: Path,
    where: str | None = None,
    k: int = 10,
    out: Path | None = None,
    model: str | None = None,
    base: Path | None = None,
    json: bool = False,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> None:
    """Find the images of a store that are most like another, exactly: every vector is compared.

    Args:
        store: Folder or address of the embeddings that `vfm embed` wrote.
        image: Image to look for.
        where: Only among rows for which this holds, such as "label = 'cat' and split in ('train', 'val')".
        k: Number of images to list.
        out: HTML page to write, with the pictures; -o for short.
        model: Model of the store, where it is no longer where it was, or a bundle of it.
        base: File of the backbone's weights, where it is no longer where it was.
        json: Print JSON, one object.
        device: cpu, cuda, or auto for CUDA where there is one.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        StoreError: There is no such store, or it holds vectors of another model.
        FilterError: The filter is none.
    """
    opened = EmbeddingStore.open(store)
    expression = None if where is None else parse_filter(where, opened.columns)
    query = embed_query(opened, image, model=model, base=base, device=device, trust=trust)
    columns = [name for name in opened.columns if name not in RESERVED]
    start = time.perf_counter()
    result = search_store(opened, query, count=k, where=expression, columns=columns)
    milliseconds = 1000 * (time.perf_counter() - start)
    recall = (
        f"Recall {result.recall:g} (exact): {result.num_searched:,} of {opened.num_rows:,} vectors compared in "
        f"{milliseconds:.0f} ms"
    )
    if json:
        facts = {"recall": result.recall, "num_searched": result.num_searched}
        neighbors = [asdict(neighbor) for neighbor in result.neighbors]
        print(json_format.dumps({**facts, "milliseconds": milliseconds, "neighbors": neighbors}))
    else:
        print(_format_table(result, columns))
        print(recall)
    if out is not None:
        subtitle = f"{store}, {opened.model.model} ({opened.model.source}){f', where {where}' if where else ''}"
        write_sheet(out, image, result, subtitle, recall)
        if not json:
            print(f"Pictures: {out}")


def embed_query(
    store: EmbeddingStore,
    image: Path,
    *,
    model: str | None = None,
    base: Path | None = None,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> np.ndarray:
    """Return the vector of an image, float32 [D], by the model of a store.

    Args:
        store: Store to search in.
        image: Path of the image to look for.
        model: The model, where it is no longer where the store knows it, or a bundle of it.
        base: File of the backbone's weights, where it is no longer where the store knows it.
        device: `cpu`, `cuda`, or `auto`.
        trust: Packages besides vfm whose code a checkpoint may name.

    Raises:
        StoreError: The model is another.
        ImageError: The image cannot be opened.
    """
    origin = store.model
    name = model or origin.model
    if base is None and origin.base is not None and name == origin.model:
        base = Path(origin.base)
    is_bundle = Path(name).is_dir()
    predictor, spec = open_embedder(
        name,
        source=None if is_bundle else origin.source,
        normalize=origin.normalize,
        base=base,
        device=device,
        trust=trust,
    )
    store.require_model(spec, name)
    return predictor.embed(image)


def write_sheet(out: Path, image: Path, result: SearchResult, subtitle: str, recall: str) -> None:
    """Write a page with the query and its neighbors as pictures."""
    page = Page("Search", subtitle)
    page.add_facts(
        {"images": len(result.neighbors), "compared": result.num_searched, "recall": result.recall}
    )
    page.add_figure(draw_contact_sheet([open_image(image)], [image.name]), f"The query, {image}")
    if result.neighbors:
        labels = [one.columns.get("label") for one in result.neighbors]
        captions = [
            f"{number}. {one.similarity:.3f} {'' if label is None else label}\n{Path(one.path).name}"
            for number, (one, label) in enumerate(zip(result.neighbors, labels, strict=True), 1)
        ]
        pictures = [_open_picture(one.path) for one in result.neighbors]
        page.add_figure(
            draw_contact_sheet(pictures, captions), f"The nearest images, best first. {recall}."
        )
    page.add_table([_make_row(number, one) for number, one in enumerate(result.neighbors, 1)])
    page.write(out)


def _open_picture(path: str) -> Pixels:
    try:
        return open_image(path)
    except ImageError:  # the caption names the file; a gray field says that it is gone
        return _GRAY


def _make_row(number: int, neighbor: Neighbor) -> dict[str, Any]:
    return {
        "rank": number,
        "similarity": round(neighbor.similarity, 4),
        **neighbor.columns,
        "path": neighbor.path,
    }


def _format_table(result: SearchResult, columns: Sequence[str]) -> str:
    if not result.neighbors:
        return "No image: the filter holds for no row."
    rows = [_make_row(number, one) for number, one in enumerate(result.neighbors, 1)]
    cells = [list(rows[0]), *([_format_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _format_cell(value: object) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
