"""`vfm search`: the images of a store that are most like another, or like words, as a table and a contact sheet."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from vfm_runtime.errors import OptionError
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.media.image import Pixels, open_image
from vfm_runtime.search import Neighbor

from vfm.embed.models import open_embedder
from vfm.embed.query_map import QueryMap
from vfm.embed.store import EmbeddingStore
from vfm.models.heads.embedding import IMAGE_TOWER
from vfm.report import Page, draw_contact_sheet
from vfm.search.exact import SearchResult, search_store
from vfm.search.index import EXACT_UP_TO, IndexFacts, search_index
from vfm.search.options import open_filtered
from vfm.search.pictures import open_picture
from vfm.tasks.image_text import PREFIX


def search(
    store: str,
    *,
    image: Path | None = None,
    box: str | None = None,
    text: str | None = None,
    where: str | None = None,
    k: int = 10,
    exact: bool = False,
    out: Path | None = None,
    model: str | None = None,
    base: Path | None = None,
    json: bool = False,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> None:
    """Find the images of a store that are most like another, or like words, and say how sure it is that they are.

    Every vector is compared, but for an image and without a filter in a store of above 200,000 rows with an index.

    Args:
        store: Folder or address of the embeddings that `vfm embed` wrote.
        image: Image to look for.
        box: Part of the image to look for, as x,y,w,h in pixels.
        text: Words to look for, in a store whose model has a text tower (open_clip:NAME/WEIGHTS, or a bundle of it).
        where: Only among rows for which this holds, such as "label = 'cat' and split in ('train', 'val')".
        k: Number of images to list.
        exact: Compare every vector of a large store with an index, too.
        out: HTML page to write, with the pictures; -o for short.
        model: Model of the store, where it is no longer where it was, or a bundle of it.
        base: File of the backbone's weights, where it is no longer where it was.
        json: Print JSON, one object.
        device: cpu, cuda, or auto for CUDA where there is one.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        StoreError: There is no such store, or it holds vectors of another model.
        FilterError: The filter is none.
        OptionError: The query is none, or the model cannot embed it.
    """
    opened, expression, columns = open_filtered(store, where)
    value_range = opened.model.value_range
    asked, picture = _open_query(image, box, text, value_range)
    query, query_map = embed_query(
        opened,
        asked if picture is None else picture,
        model=model,
        base=base,
        device=device,
        trust=trust,
    )
    num_rows = opened.num_rows
    # The recall of an index was measured by images; what it is for words, nobody knows.
    may_approximate = num_rows > EXACT_UP_TO and expression is None and not exact and text is None
    facts = IndexFacts.read(opened) if may_approximate else None
    setting = None if facts is None else facts.select(k)
    start = time.perf_counter()
    if facts is None or setting is None:
        result = search_store(opened, query, count=k, where=expression, columns=columns)
    else:
        result = search_index(opened, facts, query, count=k, columns=columns)
    milliseconds = 1000 * (time.perf_counter() - start)
    if facts is None or setting is None:
        recall = (
            f"Recall 1 (exact): {result.num_searched:,} of {num_rows:,} vectors compared in "
            f"{milliseconds:.0f} ms"
        )
        if may_approximate and facts is None:
            recall += f". Exact and slow; build an index: vfm index {store} --recall 0.95"
    else:
        recall = f"{facts.describe(setting)}: {milliseconds:.0f} ms"
    if query_map is not None:
        recall += (
            f". The store is being migrated to {query_map.facts.model}; the query went through a linear map, with "
            f"{query_map.facts.describe()}"
        )
    if json:
        answer = {
            "recall": result.recall
            if query_map is None
            else result.recall * query_map.facts.recall,
            "exact": setting is None,
            "num_searched": result.num_searched,
            "milliseconds": milliseconds,
            "neighbors": [asdict(neighbor) for neighbor in result.neighbors],
        }
        if facts is not None and setting is not None:
            answer["index"] = asdict(facts)
        if query_map is not None:
            answer["map"] = asdict(query_map.facts)
        print(json_format.dumps(answer))
    else:
        print(_format_table(result, columns))
        print(recall)
    if out is not None:
        subtitle = f"{store}, {opened.model.model} ({opened.model.source}){f', where {where}' if where else ''}"
        pictures = [open_picture(one.path, value_range) for one in result.neighbors]
        write_sheet(out, picture, pictures, asked, result, subtitle, recall)
        if not json:
            print(f"Pictures: {out}")


def _open_query(
    image: Path | None, box: str | None, text: str | None, value_range: ValueRange | None
) -> tuple[str, Pixels | None]:
    """Return what is looked for, in words, and its picture where it is one."""
    if (image is None) == (text is None):
        raise OptionError(
            "There is nothing to look for. Give --image FILE, or --text WORDS."
            if image is None
            else "--image and --text are two queries. Give one of them."
        )
    if image is None:
        if box is not None or not str(text).strip():
            raise OptionError(
                f"--text is '{text}'{f' and --box {box}' if box else ''}. Give words alone, such as --text 'a red "
                "cup'; a box is a part of --image."
            )
        return str(text), None
    picture = open_image(image, value_range=value_range)
    if box is None:
        return str(image), picture
    return f"{image}, box {box}", crop_box(picture, box, image)


def crop_box(picture: Pixels, box: str, image: Path) -> Pixels:
    """Return a part of an image, [h, w, C].

    Args:
        picture: Image, uint8 [H, W, C], upright.
        box: Left, top, width and height in pixels, as x,y,w,h.
        image: File that the image is of.

    Raises:
        OptionError: The box is none, or reaches out of the image.
    """
    try:
        x, y, width, height = (int(part) for part in box.split(","))
    except ValueError as error:
        raise OptionError(
            f"--box is '{box}'. Give left, top, width and height in whole pixels, such as 10,20,64,48."
        ) from error
    rows, columns = picture.shape[:2]
    if min(x, y) < 0 or min(width, height) < 1 or x + width > columns or y + height > rows:
        raise OptionError(
            f"--box {box} does not lie in {image}, which is {columns} pixels wide and {rows} high. Give x,y,w,h with "
            f"x + w up to {columns} and y + h up to {rows}."
        )
    return picture[y : y + height, x : x + width]


def embed_query(
    store: EmbeddingStore,
    query: str | Pixels,
    *,
    model: str | None = None,
    base: Path | None = None,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> tuple[np.ndarray, QueryMap | None]:
    """Return the vector of an image or of words, float32 [D], by the model of a store.

    While the store is being migrated, it may also be by the new model, and the linear map that it went through is
    returned with it.

    Args:
        store: Store to search in.
        query: Image to look for, uint8 [H, W, C], or words.
        model: The model, where it is no longer where the store knows it, or a bundle of it.
        base: File of the backbone's weights, where it is no longer where the store knows it.
        device: `cpu`, `cuda`, or `auto`.
        trust: Packages besides vfm whose code a checkpoint may name.

    Raises:
        StoreError: The model is another.
        OptionError: Words are looked for, and the model has no text tower.
    """
    origin = store.model
    name = model or origin.model
    if base is None and origin.base is not None and name == origin.model:
        base = Path(origin.base)
    is_bundle = Path(name).is_dir()
    reads_words = is_bundle or name.startswith(PREFIX) or origin.source == IMAGE_TOWER
    if isinstance(query, str) and not reads_words:
        raise OptionError(
            f"--text '{query}' cannot be looked for: {store.uri} holds vectors of {origin.model} ({origin.source}), a "
            "model of images alone, without a text tower. Choices: --image FILE, or --image FILE --box x,y,w,h for a "
            f"part of it; words in columns are found with --where \"label = 'cat'\"; and a store by "
            f"{PREFIX}NAME/WEIGHTS reads words."
        )
    read_alike = None if is_bundle else origin.value_range
    predictor, spec = open_embedder(
        name,
        source=None if is_bundle else origin.source,
        normalize=origin.normalize,
        bit_depth=None if read_alike is None else int(read_alike[1]).bit_length(),
        base=base,
        device=device,
        trust=trust,
    )
    query_map = None if origin.is_made_by(spec) else QueryMap.find(store, spec)
    if query_map is None:
        store.require_model(spec, name)
    elif isinstance(query, str):
        raise OptionError(
            f"--text '{query}' cannot be looked for yet: {store.uri} is being migrated to {name}, and the linear map "
            "for its queries was fitted on images. Wait until all are embedded, or look for an --image."
        )
    vector = predictor.embed_text(query) if isinstance(query, str) else predictor.embed(query)
    return vector if query_map is None else query_map.apply(vector), query_map


def write_sheet(
    out: Path,
    picture: Pixels | None,
    pictures: Sequence[Pixels],
    name: str,
    result: SearchResult,
    subtitle: str,
    recall: str,
) -> None:
    """Write a page with the query, words where it is no picture, and its neighbors as pictures."""
    page = Page("Search" if picture is not None else f"Search: {name}", subtitle)
    page.add_facts(
        {"images": len(result.neighbors), "compared": result.num_searched, "recall": result.recall}
    )
    if picture is not None:
        page.add_figure(draw_contact_sheet([picture], [Path(name).name]), f"The query, {name}")
    if result.neighbors:
        labels = [one.columns.get("label") for one in result.neighbors]
        captions = [
            f"{number}. {one.similarity:.3f} {'' if label is None else label}\n{Path(one.path).name}"
            for number, (one, label) in enumerate(zip(result.neighbors, labels, strict=True), 1)
        ]
        page.add_figure(
            draw_contact_sheet(pictures, captions), f"The nearest images, best first. {recall}."
        )
    page.add_table([_make_row(number, one) for number, one in enumerate(result.neighbors, 1)])
    page.write(out)


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
