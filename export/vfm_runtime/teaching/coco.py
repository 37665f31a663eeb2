"""COCO files of examples: the boxes by which a detector is taught classes, and the images that they lie in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vfm_runtime.errors import DataError, format_value
from vfm_runtime.validation import is_number

BoxPairs = list[tuple[Path, list[list[float]]]]
"""Images, each with the boxes of one class in it: left, top, right and bottom in pixels."""


def read_coco(path: Path, label: str | None = None) -> dict[str, BoxPairs]:
    """Return the images of each class of a COCO file, with its boxes.

    Args:
        path: JSON file with `images`, `annotations` and `categories`; images lie beside it, or in a folder `images`.
        label: One class to read: the category of this name, or the only one, whatever it is called; None for all.

    Raises:
        DataError: It cannot be read, names images that are not there, or has no such category.
    """
    try:
        content = json.loads(path.read_bytes())
        images = {image["id"]: str(image["file_name"]) for image in content["images"]}
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        rows = [
            (row["image_id"], row["category_id"], row["bbox"]) for row in content["annotations"]
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as a COCO file ({type(error).__name__}: {error}). Give a JSON file with images, "
            "annotations and categories, whose annotations have a bbox."
        ) from error
    used = {category for _, category, _ in rows}
    if label is not None:
        chosen = [number for number, name in names.items() if name == label]
        if not chosen and len(used) == 1:
            chosen = [*used]
        if not chosen:
            listed = ", ".join(repr(name) for name in names.values()) or "none"
            raise DataError(
                f"{path} has no category '{label}', and several others. Categories: {listed}. Name one of them."
            )
        names = dict.fromkeys(chosen, label)
    boxes: dict[str, dict[Path, list[list[float]]]] = {name: {} for name in names.values()}
    for image, category, box in rows:
        if category in names:
            file = _find_image(path, images.get(image))
            boxes[names[category]].setdefault(file, []).append(_read_box(path, box))
    return {name: list(by_file.items()) for name, by_file in boxes.items() if by_file}


def _find_image(path: Path, name: str | None) -> Path:
    if name is None:
        raise DataError(
            f"{path} has a box of an image that it does not list. List every image under 'images'."
        )
    for folder in (path.parent, path.parent / "images"):
        if (file := folder / name).is_file():
            return file
    raise DataError(
        f"{path} names the image {name}, which is neither beside it nor in a folder 'images'. Put it there."
    )


def _read_box(path: Path, box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise DataError(
            f"{path} has the bbox {format_value(box)}. Give left, top, width and height in pixels."
        )
    left, top, width, height = box
    return [left, top, left + width, top + height]
