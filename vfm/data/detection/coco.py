"""COCO: one JSON file a split, with images, categories and annotations."""

from __future__ import annotations

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


def find_coco(root: Path) -> dict[str, Path]:
    """The annotation file of each split, or of "" where one file holds everything; none where this is no COCO.

    Known are Roboflow's `train/_annotations.coco.json`, COCO's own `annotations/instances_train2017.json`, and files
    such as `train.json` in the root.
    """
    if root.is_file():
        return {"": root} if root.suffix == ".json" and _names_a_key(root) else {}
    files = sorted(
        [*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob("*/*.coco.json")]
    )
    found: dict[str, Path] = {}
    for path in files:
        split = _split_of(path, root) if _names_a_key(path) else None
        if split is not None and (split not in found or path.name.startswith("instances_")):
            found[split] = path
    if "" in found and len(found) > 1:
        del found[""]
    return found


def read_coco(root: Path, box_format: BoxFormat = "xywh") -> Reading[AnnotatedImage]:
    """Read every split.

    Args:
        root: The folder of the data, or one JSON file.
        box_format: `xywh` as COCO has it: left, top, width, height; `xyxy` for files with corners.

    Raises:
        BoxError: A file is damaged, or its ids contradict each other.
    """
    splits: dict[str, list[AnnotatedImage]] = {}
    notes: list[str] = []
    classes: dict[Path, list[str]] = {}
    files = find_coco(root)
    if not files:
        raise BoxError(
            f"{root} has no COCO annotations: no train/_annotations.coco.json, annotations/instances_train*.json or "
            "train.json."
        )
    folder = root.parent if root.is_file() else root
    for split, path in files.items():
        content = require_keys(read_json(path), _KEYS, str(path))
        names = _categories(content["categories"], path)
        classes[path] = list(names.values())
        splits[split] = _scenes(content, path, folder, split, names, box_format, notes)
    _check_same_classes(classes)
    return Reading(splits, next(iter(classes.values())), notes)


def _names_a_key(path: Path) -> bool:
    """Whether a JSON file begins as one of COCO does; it may have hundreds of megabytes."""
    with path.open("rb") as file:
        start = file.read(_START)
    return any(f'"{key}"'.encode() in start for key in _KEYS)


def _split_of(path: Path, root: Path) -> str | None:
    """The split that a file's place or name says; "" where it is the only kind, None where it is another file."""
    words = [path.parent.name] if path.parent not in (root, root / "annotations") else []
    words += path.name.removesuffix(".json").replace("-", "_").replace(".", "_").split("_")
    for word in words:
        if split := SPLIT_FOLDERS.get(word.rstrip("0123456789").lower()):
            return split
    return "" if "caption" not in path.name and "keypoint" not in path.name else None


def _categories(entries: Sequence[Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for entry in entries:
        category = require_keys(entry, ("id", "name"), f"A category of {path}")
        number, name = int(category["id"]), str(category["name"])
        if names.get(number, name) != name:
            raise BoxError(
                f"{path}: the category id {number} is '{names[number]}' and '{name}'. Give each an id of its own."
            )
        names[number] = name
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise BoxError(f"{path} has two categories '{twice[0]}'. Join them, or rename one.")
    return dict(sorted(names.items()))


def _check_same_classes(classes: Mapping[Path, list[str]]) -> None:
    (first, own), *others = classes.items()
    for path, names in others:
        if set(names) != set(own):
            raise BoxError(
                f"The classes of {path} are not those of {first}: only there {sorted(set(names) - set(own))[:5]}, only "
                f"in {first.name} {sorted(set(own) - set(names))[:5]}. Export both splits with one list of categories."
            )


def _scenes(
    content: Mapping[str, Any],
    path: Path,
    root: Path,
    split: str,
    names: Mapping[int, str],
    box_format: BoxFormat,
    notes: list[str],
) -> list[AnnotatedImage]:
    images: dict[Any, Mapping[str, Any]] = {}
    for entry in content["images"]:
        image = require_keys(entry, ("id", "file_name"), f"An image of {path}")
        if image["id"] in images:
            raise BoxError(
                f"{path}: two images have the id {image['id']}, '{images[image['id']]['file_name']}' and "
                f"'{image['file_name']}', so its boxes may be of either. Export it again with an id for each image."
            )
        images[image["id"]] = image
    boxes = _boxes(content["annotations"], path, images, names, box_format, notes)
    folder = _image_folder([str(i["file_name"]) for i in images.values()], path, root, split)
    return [
        AnnotatedImage(
            folder / str(image["file_name"]),
            name_below(folder / str(image["file_name"]), root),
            boxes[number],
            _size(image),
            f"{path}, image {image['file_name']}",
        )
        for number, image in images.items()
    ]


def _boxes(
    entries: Sequence[Any],
    path: Path,
    images: Mapping[Any, Any],
    names: Mapping[int, str],
    box_format: BoxFormat,
    notes: list[str],
) -> dict[Any, list[Box]]:
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
        box = _box(one, names[one["category_id"]], box_format, where)
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


def _box(entry: Mapping[str, Any], label: str, box_format: BoxFormat, where: str) -> Box:
    given = entry["bbox"]
    if not isinstance(given, list) or len(given) != 4:
        raise BoxError(f"{where}: bbox is {given!r:.60}; expected four numbers.")
    try:
        a, b, c, d = (float(v) for v in given)
    except (TypeError, ValueError) as error:
        raise BoxError(f"{where}: bbox is {given}; expected four numbers.") from error
    right, bottom = (a + c, b + d) if box_format == "xywh" else (c, d)
    return Box(a, b, right, bottom, label, bool(entry.get("iscrowd", 0)))


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    if image.get("height") and image.get("width"):
        return int(image["height"]), int(image["width"])
    return None


def _image_folder(names: Sequence[str], path: Path, root: Path, split: str) -> Path:
    """Where the images lie that a file names: beside it, or in one of the usual folders."""
    year = path.stem.rpartition("_")[2]
    folders = [name for name, meant in SPLIT_FOLDERS.items() if meant == split] if split else []
    places = [path.parent, root, root / "images", root / year, root / "images" / year]
    for folder in folders:
        places += [root / folder, root / "images" / folder]
    places += sorted(place for place in root.iterdir() if place.is_dir())
    if not names:
        raise BoxError(f"{path} lists no images.")
    return max(places, key=lambda place: sum((place / name).is_file() for name in names[:20]))
