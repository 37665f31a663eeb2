"""COCO: one JSON file a split, with images, categories and annotations."""

import codecs
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.detection.annotation import (
    AnnotatedImage,
    Box,
    BoxError,
    name_below,
    read_json,
    require_keys,
)
from vfm.data.layouts import Reading

BoxFormat = Literal["xywh", "xyxy"]

_KEYS = ("images", "annotations", "categories")
_START = 65_536
_LISTS = re.compile(rb'"(images|annotations)"\s*:\s*\[')
_OTHER = re.compile(rb'"categories"\s*:\s*\{')


def find_coco(root: Path) -> dict[str, Path]:
    """The annotation file of each split, or of "" where one file holds everything; none where this is no COCO.

    Known are Roboflow's `train/_annotations.coco.json`, COCO's own `annotations/instances_train2017.json`, and files
    such as `train.json` in the root.
    """
    if root.is_file():
        return {"": root} if root.suffix == ".json" and _is_coco(root) else {}
    patterns = ("*.json", "annotations/*.json", "*/*.coco.json")
    files: dict[str, Path] = {}
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        split = _guess_split(path, root) if _is_coco(path) else None
        if split is not None and (split not in files or path.name.startswith("instances_")):
            files[split] = path
    if len(files) > 1:
        files.pop("", None)
    return files


def read_coco(root: Path, box_format: BoxFormat = "xywh") -> Reading[AnnotatedImage]:
    """Read every split.

    Args:
        root: Folder of the data, or one JSON file.
        box_format: `xywh` as COCO has it: left, top, width, height; `xyxy` for files with corners.

    Raises:
        BoxError: A file is damaged, or its ids contradict each other.
    """
    files = find_coco(root)
    if not files:
        raise BoxError(
            f"{root} has no COCO annotations: no train/_annotations.coco.json, annotations/instances_train*.json or "
            "train.json."
        )
    splits: dict[str, list[AnnotatedImage]] = {}
    classes: dict[Path, list[str]] = {}
    notes: list[str] = []
    for split, path in files.items():
        content = require_keys(read_json(path), _KEYS, str(path))
        names = _read_categories(content["categories"], path)
        classes[path] = list(names.values())
        images = _read_images(content["images"], path)
        boxes = _read_boxes(content["annotations"], path, images, names, box_format, notes)
        folder = root.parent if root.is_file() else root
        image_folder = _find_image_folder(
            [i["file_name"] for i in images.values()], path, folder, split
        )
        splits[split] = []
        for number, image in images.items():
            file = image_folder / image["file_name"]
            height, width = image.get("height"), image.get("width")
            size = (int(height), int(width)) if height and width else None
            where = f"{path}, image {image['file_name']}"
            splits[split].append(
                AnnotatedImage(file, name_below(file, folder), boxes[number], size, where)
            )
    (first, expected), *others = classes.items()
    for path, listed in others:
        if set(listed) != set(expected):
            raise BoxError(
                f"The classes of {path} are not those of {first}: only there {sorted({*listed} - {*expected})[:5]}, "
                f"only in {first.name} {sorted({*expected} - {*listed})[:5]}. Export both splits with one list of "
                "categories."
            )
    return Reading(splits, expected, notes)


def _is_coco(path: Path) -> bool:
    """Whether a JSON file begins or ends as one of COCO does; it may have hundreds of megabytes."""
    with path.open("rb") as file:
        parts = [file.read(_START)]
        file.seek(max(0, path.stat().st_size - _START))
        parts.append(file.read())
    # Label Studio's notes.json has categories alone, Datumaro an object of them, and other tools have a list of tasks.
    return (
        parts[0].lstrip(codecs.BOM_UTF8).lstrip().startswith(b"{")
        and any(_LISTS.search(part) for part in parts)
        and not any(_OTHER.search(part) for part in parts)
    )


def _guess_split(path: Path, root: Path) -> str | None:
    """The split that a file's folder or name says; "" where it is the only kind, None where it is another file."""
    words = [path.parent.name] if path.parent not in (root, root / "annotations") else []
    words += path.name.removesuffix(".json").replace("-", "_").replace(".", "_").split("_")
    for word in words:
        if split := SPLIT_FOLDERS.get(word.rstrip("0123456789").lower()):
            return split
    return "" if "caption" not in path.name and "keypoint" not in path.name else None


def _read_categories(entries: Sequence[Any], path: Path) -> dict[int, str]:
    """Name of each category by its id."""
    names: dict[int, str] = {}
    for entry in entries:
        category = require_keys(entry, ("id", "name"), f"A category of {path}")
        number, name = int(category["id"]), str(category["name"])
        if names.setdefault(number, name) != name:
            raise BoxError(
                f"{path}: the category id {number} is '{names[number]}' and '{name}'. Give each an id of its own."
            )
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise BoxError(f"{path} has two categories '{twice[0]}'. Join them, or rename one.")
    return dict(sorted(names.items()))


def _read_images(entries: Sequence[Any], path: Path) -> dict[Any, Mapping[str, Any]]:
    """The entry of each image by its id."""
    images: dict[Any, Mapping[str, Any]] = {}
    for entry in entries:
        image = dict(require_keys(entry, ("id", "file_name"), f"An image of {path}"))
        image["file_name"] = str(image["file_name"])
        other = images.setdefault(image["id"], image)
        if other is not image:
            raise BoxError(
                f"{path}: two images have the id {image['id']}, '{other['file_name']}' and '{image['file_name']}', so "
                "its boxes may be of either. Export it again with an id for each image."
            )
    if not images:
        raise BoxError(f"{path} lists no images.")
    return images


def _read_boxes(
    entries: Sequence[Any],
    path: Path,
    images: Mapping[Any, Any],
    names: Mapping[int, str],
    box_format: BoxFormat,
    notes: list[str],
) -> dict[Any, list[Box]]:
    """The boxes of each image by its id."""
    boxes: dict[Any, list[Box]] = defaultdict(list)
    seen: set[Any] = set()
    colliding = repeated = 0
    for entry in entries:
        one = require_keys(entry, ("image_id", "category_id", "bbox"), f"An annotation of {path}")
        where = f"{path}, annotation {one.get('id', '(without id)')}"
        if one["image_id"] not in images:
            raise BoxError(
                f"{where} is of image {one['image_id']}, which is not listed. Add it, or drop the boxes."
            )
        if one["category_id"] not in names:
            raise BoxError(
                f"{where} is of category {one['category_id']}, which is not listed. Categories: "
                f"{', '.join(f'{k} {v}' for k, v in list(names.items())[:8])}."
            )
        box = _read_box(one, names[one["category_id"]], box_format, where)
        if "id" in one and one["id"] in seen:
            colliding += 1
            if box in boxes[one["image_id"]]:
                repeated += 1
                continue
        seen.add(one.get("id"))
        boxes[one["image_id"]].append(box)
    if colliding:
        notes.append(
            f"{colliding} annotations of {path} have the id of another; {repeated} of them repeat it and count once, "
            f"{colliding - repeated} are other boxes and are kept."
        )
    return boxes


def _read_box(entry: Mapping[str, Any], label: str, box_format: BoxFormat, where: str) -> Box:
    numbers = entry["bbox"]
    if not isinstance(numbers, list) or len(numbers) != 4:
        raise BoxError(f"{where}: bbox is {numbers!r:.60}; expected four numbers.")
    try:
        a, b, c, d = (float(number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise BoxError(f"{where}: bbox is {numbers}; expected four numbers.") from error
    right, bottom = (a + c, b + d) if box_format == "xywh" else (c, d)
    return Box(a, b, right, bottom, label, bool(entry.get("iscrowd", 0)))


def _find_image_folder(names: Sequence[str], path: Path, root: Path, split: str) -> Path:
    """Where the images lie that a file names: beside it, or in one of the usual folders."""
    year = path.stem.rpartition("_")[2]
    folders = [path.parent, root, root / "images", root / year, root / "images" / year]
    for name, meant in SPLIT_FOLDERS.items():
        if split and meant == split:
            folders += [root / name, root / "images" / name]
    folders += sorted(folder for folder in root.iterdir() if folder.is_dir())
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names[:20]))
