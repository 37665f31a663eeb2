"""A map in one HTML file, on which points are pictures: zoom, lasso, and a CSV of what was chosen; no network."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vfm.report.page import render_template

THUMBNAIL = 48
"""Side of a picture in the page, in pixels."""

_MOST_VALUES = 40
"""Values that the legend lists."""


def make_thumbnail(image: npt.NDArray[np.uint8]) -> Image.Image:
    """Return an image [H, W, C] as a square of `THUMBNAIL` pixels, its longer side cut."""
    array = image[:, :, 0] if image.shape[2] == 1 else image
    picture = Image.fromarray(array).convert("RGB")
    return ImageOps.fit(picture, (THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)


def write_point_map(
    file: Path,
    points: npt.NDArray[np.floating[Any]],
    thumbnails: Sequence[Image.Image],
    paths: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
    column: str | None = None,
    values: Sequence[Any] | None = None,
) -> None:
    """Write the page, making its folder if needed.

    Args:
        file: HTML page to write or replace.
        points: Coordinates, [N, 2], of any scale.
        thumbnails: Picture of each point, as `make_thumbnail` returns it.
        paths: What the CSV names each point.
        title: Heading of the page.
        subtitle: Line beside the heading, such as the source.
        column: What the points are colored by.
        values: Value of each point in that column.
    """
    low, high = points.min(0), points.max(0)
    scaled = (points - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-9)
    columns = ceil(sqrt(len(points)))
    sprite = Image.new(
        "RGB", (columns * THUMBNAIL, ceil(len(points) / columns) * THUMBNAIL), "white"
    )
    for index, thumbnail in enumerate(thumbnails):
        sprite.paste(thumbnail, (index % columns * THUMBNAIL, index // columns * THUMBNAIL))
    buffer = io.BytesIO()
    sprite.save(buffer, format="JPEG", quality=85)
    texts = [None if value is None else str(value) for value in values or [None] * len(points)]
    data = {
        "points": [
            {"x": round(float(x), 4), "y": round(float(y), 4), "path": path, "value": value}
            for (x, y), path, value in zip(scaled, paths, texts, strict=True)
        ],
        "extent": np.maximum(np.abs(scaled).max(0), 0.05).round(4).tolist(),
        "column": column,
        "values": Counter(text for text in texts if text is not None).most_common(_MOST_VALUES),
        "side": THUMBNAIL,
        "perRow": columns,
        "sprite": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}",
    }
    # Nothing in a path or a label can end the script element.
    text = json.dumps(data).replace("<", "\\u003c")
    size = 28 if len(points) <= 1000 else 18
    page = render_template(
        "point_map.html", title=title, subtitle=subtitle, size=size, data=markupsafe.Markup(text)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")
