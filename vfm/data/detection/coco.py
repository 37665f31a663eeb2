"""COCO: one JSON file a split, with images, categories and annotations."""

import codecs
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.detection.annotation import (
    AnnotatedImage,
    Box,
    BoxError,
    enclose_rotated,
    name_below,
    read_json,
    require_keys,
)
from vfm.data.detection.files import ImageFiles
from vfm.data.layouts import Reading

BoxFormat = Literal["xywh", "xyxy"]

_KEYS = ("images", "annotations", "categories")
_START = 65_536
# What COCO publishes beside the instances.
_BESIDE_INSTANCES = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
_EMPTY = "have an empty bbox and are left out"
_OUTLINED = "have an outline alone, whose bounds are taken for the box"
_ROTATED = "are rotated; the upright box around each is taken"
_LISTS = re.compile(rb'"(images|annotations)"\s*:\s*\[')
_OTHER = re.compile(rb'"categories"\s*:\s*\{')


def find_coco(root: Path) -> dict[str, Path]:
    """The annotation file of each split, or of "" where one file holds everything; none where this is no COCO.

    Known are Roboflow's `train/_annotations.coco.json`, COCO's own `annotations/instances_train2017.json`, and files
    such as `train.json` in the root.
    """
    files: dict[str, Path] = {}
    for split, path in _list_files(root):
        if split not in files or path.name.startswith("instances_"):
            files[split] = path
    if len(files) > 1:
        files.pop("", None)
    return files


def _list_files(root: Path) -> list[tuple[str, Path]]:
    """Every file of COCO's instances, with its split."""
    if root.is_file():
        return [("", root)] if root.suffix == ".json" and _is_coco(root) else []
    patterns = ("*.json", "annotations/*.json", "*/*.coco.json", "*/annotations/*.json")
    paths = sorted({path for pattern in patterns for path in root.glob(pattern)})
    splits = [(_guess_split(path, root), path) for path in paths if _is_coco(path)]
    return [(split, path) for split, path in splits if split is not None]


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
    notes = [
        f"{path} is left out: {files.get(split, 'what names a split')} is read in its place."
        for split, path in _list_files(root)
        if path not in files.values() and not path.name.startswith(_BESIDE_INSTANCES)
    ]
    contents = {split: read_json(path) for split, path in files.items()}
    for split, content in [*contents.items()]:
        # COCO's own image_info_test2017.json, whose annotations are a secret.
        if isinstance(content, Mapping) and "annotations" not in content and len(contents) > 1:
            notes.append(f"{files[split]} has images without annotations, and is left out.")
            del contents[split]
    folder = root.parent if root.is_file() else root
    image_files = ImageFiles()
    splits: dict[str, list[AnnotatedImage]] = {}
    classes: dict[Path, list[str]] = {}
    ids: dict[str, int] | None = None
    for split, content in contents.items():
        path = files[split]
        require_keys(content, _KEYS, str(path))
        names = _read_categories(content["categories"], content["annotations"], path, notes)
        classes[path] = list(names.values())
        if ids is None or split == "train":
            ids = {name: number for number, name in names.items()}
        images = _read_images(content["images"], path)
        boxes = _read_boxes(content["annotations"], path, images, names, box_format, notes)
        stated = [image["file_name"] for image in images.values()]
        folders = _list_image_folders(path, folder, split)
        paths, cut = image_files.find_below(folders, stated)
        if cut:
            notes.append(
                f"{path} names images in folders of another machine, such as '{stated[0]}'; {paths[0]} is taken."
            )
        splits[split] = _join_images(
            zip(images.items(), paths, strict=True), boxes, folder, path, notes
        )
    (first, expected), *others = classes.items()
    for path, listed in others:
        if set(listed) != set(expected):
            raise BoxError(
                f"The classes of {path} are not those of {first}: only there {sorted({*listed} - {*expected})[:5]}, "
                f"only in {first.name} {sorted({*expected} - {*listed})[:5]}. Export both splits with one list of "
                "categories."
            )
    return Reading(splits, expected, [*notes, *image_files.describe()], ids)


def _join_images(
    images: Iterable[tuple[tuple[Any, Mapping[str, Any]], Path]],
    boxes: Mapping[Any, list[Box]],
    root: Path,
    source: Path,
    notes: list[str],
) -> list[AnnotatedImage]:
    """Images with their boxes, one for each file: a file may be listed under several ids."""
    joined: dict[Path, AnnotatedImage] = {}
    several: list[Path] = []
    for (number, entry), path in images:
        height, width = entry.get("height"), entry.get("width")
        size = (int(height), int(width)) if height and width else None
        where = f"{source}, image {entry['file_name']}"
        image = AnnotatedImage(path, name_below(path, root), [*boxes[number]], size, where)
        other = joined.setdefault(path, image)
        if other is image:
            continue
        if other.size != size:
            raise BoxError(
                f"{where} is listed twice, of {_format_size(other.size)} and of {_format_size(size)}. Mend its entry."
            )
        other.boxes.extend(image.boxes)
        several.append(path)
    if several:
        notes.append(
            f"{len(several)} images of {source} are listed again under another id, such as {several[0].name}; the "
            "boxes of all its ids are joined."
        )
    return [*joined.values()]


def _format_size(size: tuple[int, int] | None) -> str:
    return f"{size[1]} x {size[0]} pixels" if size else "unknown size"


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
    folder = path.parent.parent if path.parent.name == "annotations" else path.parent
    words = [folder.name] if folder != root else []
    words += path.name.removesuffix(".json").replace("-", "_").replace(".", "_").split("_")
    for word in words:
        if split := SPLIT_FOLDERS.get(word.rstrip("0123456789").lower()):
            return split
    return "" if "caption" not in path.name and "keypoint" not in path.name else None


def _read_categories(
    entries: Sequence[Any], annotations: Sequence[Any], path: Path, notes: list[str]
) -> dict[int, str]:
    """Name of each category by its id; of two with one name, that without annotations is left out."""
    names: dict[int, str] = {}
    for entry in entries:
        category = require_keys(entry, ("id", "name"), f"A category of {path}")
        number, name = int(_read_id(category["id"])), str(category["name"])
        if names.setdefault(number, name) != name:
            raise BoxError(
                f"{path}: the category id {number} is '{names[number]}' and '{name}'. Give each an id of its own."
            )
    used = {
        _read_id(entry.get("category_id")) for entry in annotations if isinstance(entry, Mapping)
    }
    counts = Counter(names.values())
    for number, name in [*names.items()]:
        if counts[name] > 1 and number not in used:
            # Roboflow's parent of all categories may be called as one of them.
            notes.append(
                f"{path} has two categories '{name}'; {number} has no box and is left out."
            )
            counts[name] -= 1
            del names[number]
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise BoxError(f"{path} has two categories '{twice[0]}'. Join them, or rename one.")
    return dict(sorted(names.items()))


def _read_images(entries: Sequence[Any], path: Path) -> dict[Any, Mapping[str, Any]]:
    """The entry of each image by its id."""
    images: dict[Any, Mapping[str, Any]] = {}
    for entry in entries:
        image = dict(require_keys(entry, ("id", "file_name"), f"An image of {path}"))
        image["file_name"], image["id"] = str(image["file_name"]), _read_id(image["id"])
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
    events: Counter[str] = Counter()
    for entry in entries:
        one = dict(require_keys(entry, ("image_id", "category_id"), f"An annotation of {path}"))
        one |= {name: _read_id(one[name]) for name in ("image_id", "category_id")}
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
        box = _read_box(one, names[one["category_id"]], box_format, where, events)
        if box is None:
            continue
        if "id" in one and one["id"] in seen:
            events["colliding"] += 1
            if box in boxes[one["image_id"]]:
                events["repeated"] += 1
                continue
        seen.add(one.get("id"))
        boxes[one["image_id"]].append(box)
    colliding, repeated = events.pop("colliding", 0), events.pop("repeated", 0)
    if colliding:
        notes.append(
            f"{colliding} annotations of {path} have the id of another; {repeated} of them repeat it and count once, "
            f"{colliding - repeated} are other boxes and are kept."
        )
    notes += [f"{count} annotations of {path} {event}." for event, count in events.items()]
    return boxes


def _read_id(value: Any) -> Any:
    """An id as a number where it is one in quotes, which some writers put into one list and not into the other."""
    is_number = isinstance(value, str) and value.isdecimal() and str(int(value)) == value
    return int(value) if is_number else value


def _read_box(
    entry: Mapping[str, Any], label: str, box_format: BoxFormat, where: str, events: Counter[str]
) -> Box | None:
    """The box of an annotation; None where it has none."""
    numbers = entry.get("bbox")
    crowd = bool(entry.get("iscrowd", 0))
    if not numbers:
        outline = entry.get("segmentation")
        polygons = outline if isinstance(outline, list) else []
        points = [number for part in polygons if isinstance(part, list) for number in part]
        points = points if len(points) >= 6 and len(points) % 2 == 0 else []
        if "bbox" not in entry and not points:
            require_keys(entry, ("bbox",), where)
        events[_OUTLINED if points else _EMPTY] += 1
        if not points:
            return None
        across, down = points[::2], points[1::2]
        return Box(min(across), min(down), max(across), max(down), label, crowd)
    if not isinstance(numbers, list) or len(numbers) != 4:
        raise BoxError(f"{where}: bbox is {numbers!r:.60}; expected four numbers.")
    try:
        a, b, c, d = (float(number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise BoxError(f"{where}: bbox is {numbers}; expected four numbers.") from error
    right, bottom = (a + c, b + d) if box_format == "xywh" else (c, d)
    area = entry.get("area")
    box = Box(a, b, right, bottom, label, crowd, area if isinstance(area, int | float) else 0.0)
    attributes = entry.get("attributes")
    rotation = attributes.get("rotation") if isinstance(attributes, Mapping) else None
    if isinstance(rotation, int | float) and rotation % 180:
        events[_ROTATED] += 1
        return enclose_rotated(box, rotation)
    return box


def _list_image_folders(path: Path, root: Path, split: str) -> list[Path]:
    """Where the images may lie that a file names: beside it, or in one of the usual folders."""
    year = path.stem.rpartition("_")[2]
    folders = [path.parent, root, root / "images", root / year, root / "images" / year]
    for name, meant in SPLIT_FOLDERS.items():
        if split and meant == split:
            folders += [root / name, root / "images" / name]
    tops = [root, root / "images"]
    if path.parent.name == "annotations":
        tops += [path.parent.parent, path.parent.parent / "images"]
    below = [folder for top in tops if top.is_dir() for folder in sorted(top.iterdir())]
    return [*folders, *tops, *(folder for folder in below if folder.is_dir())]
