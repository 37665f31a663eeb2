"""Label Studio's JSON: tasks with an image each and rectangles in percent of it, by a person or a model."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vfm.data.detection.annotation import (
    AnnotatedImage,
    Box,
    BoxError,
    name_below,
    read_json,
    require_keys,
)
from vfm.data.detection.files import ImageFiles
from vfm.data.labelstudio import TASKS_FILE, choose_results, find_image_name, find_tasks
from vfm.data.layouts import Reading

_RECTANGLES = re.compile(
    rb'"rectanglelabels"|"predictions"\s*:\s*\[\s*\{(?!(?s:.*)"choices"\s*:\s*\[)'
)


def find_label_studio(root: Path) -> Path | None:
    """The file of tasks with rectangles; None where there is none."""
    return find_tasks(root, _RECTANGLES)


def read_label_studio(root: Path) -> Reading[AnnotatedImage]:
    """Read the rectangles of each task: what a person drew, else what a model predicted.

    Args:
        root: Folder of the file and of its images, or the file.

    Raises:
        BoxError: The file is damaged, or holds no tasks with images.
    """
    path = find_label_studio(root)
    if path is None:
        raise BoxError(
            f"{root} holds no JSON of Label Studio with rectangles, such as {TASKS_FILE}."
        )
    tasks = read_json(path)
    events: Counter[str] = Counter()
    names, boxes, sizes = [], [], []
    for number, task in enumerate(tasks, start=1):
        where = f"{path}, task {number}"
        data = require_keys(require_keys(task, ("data",), where)["data"], (), where)
        name = find_image_name(data)
        if name is None:
            raise BoxError(
                f"{where} names no image file. Its data: {', '.join(data) or 'nothing'}."
            )
        names.append(name)
        results = choose_results(task, events) or []
        boxes.append([box for one in results if (box := _read_rectangle(one, where, events))])
        sizes.append(next((_read_size(one) for one in results if _read_size(one)), None))
    files = ImageFiles()
    paths, _ = files.find_below([path.parent, path.parent / "images"], names)
    images = [
        AnnotatedImage(
            image, name_below(image, path.parent), drawn, size, f"{path}, task {number}", True
        )
        for number, (image, drawn, size) in enumerate(
            zip(paths, boxes, sizes, strict=True), start=1
        )
    ]
    notes = [f"{count} {event.format(path)}" for event, count in events.items()]
    return Reading({"": images}, None, [*notes, *files.describe()])


def _read_rectangle(result: Mapping[str, Any], where: str, events: Counter[str]) -> Box | None:
    """The box of a result, in fractions of the image; None where it is of another kind."""
    value = result.get("value") or {}
    labels = value.get("rectanglelabels")
    if result.get("type") != "rectanglelabels" or not labels:
        events["results of {} are no rectangles, and are left out."] += 1
        return None
    if (value.get("rotation") or 0) % 360:
        events["rectangles of {} are rotated, and are left out."] += 1
        return None
    try:
        x, y, width, height = (float(value[name]) / 100 for name in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError) as error:
        raise BoxError(
            f"{where}: a rectangle is {value!r:.80}; expected x, y, width and height in percent of the image."
        ) from error
    return Box(x, y, x + width, y + height, str(labels[0]))


def _read_size(result: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = result.get("original_height"), result.get("original_width")
    return (int(height), int(width)) if height and width else None
