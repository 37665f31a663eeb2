"""YOLO: a text file for each image, a line for each object, shares of the image; classes in data.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from vfm_runtime.media.image import find_images

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.detection.annotation import (
    AnnotatedImage,
    Box,
    BoxError,
    name_below,
    read_image_size,
)
from vfm.data.layouts import Reading

_NAMES = ("classes.txt", "obj.names", "labels.txt")
# Labelling tools round; beyond this the numbers are no shares.
_MOST = 1.01


def find_yolo(root: Path) -> Path | None:
    """The file that names the classes: a data.yaml, or a list of names; None where this is no YOLO."""
    if root.is_file():
        return root if root.suffix in (".yaml", ".yml") else None
    yamls = sorted(p for p in root.glob("*.y*ml") if _settings(p).get("names") is not None)
    lists = [root / name for name in _NAMES if (root / name).is_file()]
    return next(iter([*yamls, *lists]), None)


def read_yolo(root: Path) -> Reading[AnnotatedImage]:
    """Read every split.

    Args:
        root: The folder of the data, or its data.yaml.

    Raises:
        BoxError: A file is missing, or holds no lines of YOLO.
    """
    listed = find_yolo(root)
    if listed is None:
        raise BoxError(
            f"{root} names no classes: no data.yaml with 'names', and none of {', '.join(_NAMES)}. Write one: "
            "names: [first, second]."
        )
    folder = listed.parent
    settings = _settings(listed) if listed.suffix in (".yaml", ".yml") else {}
    names = _names(
        settings["names"] if settings else listed.read_text(encoding="utf-8").split("\n")
    )
    splits: dict[str, list[AnnotatedImage]] = {}
    for split, images in _images(settings, folder).items():
        splits[split] = [_scene(path, folder, names) for path in images]
        _check_labels(splits[split], folder)
    return Reading(splits, names)


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BoxError(f"{path} is not valid YAML: {error}") from error
    return found if isinstance(found, dict) else {}


def _names(given: Any) -> list[str]:
    if isinstance(given, Mapping):
        given = [given[key] for key in sorted(given, key=int)]
    return [str(name).strip() for name in given if str(name).strip()]


def _images(settings: Mapping[str, Any], folder: Path) -> dict[str, list[Path]]:
    """Image files of each split: as the data.yaml says, or by the folders' names."""
    base = folder / str(settings.get("path") or "")
    # Written on another machine, it names a folder that is not there; the splits lie beside the file.
    base = base if base.is_dir() else folder
    given = {split: settings[key] for key, split in SPLIT_FOLDERS.items() if settings.get(key)}
    if not given:
        below = [folder / "images", folder]
        given = {
            split: str(place / key)
            for place in reversed(below)
            for key, split in SPLIT_FOLDERS.items()
            if (place / key).is_dir()
        }
    if not given:
        return {"": find_images(folder / "images" if (folder / "images").is_dir() else folder)}
    return {split: _listed(value, base, split) for split, value in given.items()}


def _listed(value: Any, base: Path, split: str) -> list[Path]:
    found: list[Path] = []
    for item in value if isinstance(value, list) else [value]:
        # Roboflow writes ../train/images, meant from a folder below.
        places = [base / str(item), base / str(item).removeprefix("../")]
        place = next((p for p in places if p.exists()), None)
        if place is None:
            raise BoxError(
                f"The {split} images are said to be in {item}, but there is no {places[0]}. Mend data.yaml."
            )
        if place.is_dir():
            found += find_images(place)
        else:
            lines = place.read_text(encoding="utf-8").split("\n")
            found += [place.parent / line.strip() for line in lines if line.strip()]
    return found


def _label_file(image: Path) -> Path:
    """`labels/` in place of the last `images/` of the path, or beside the image."""
    parts = list(image.parts)
    if "images" in parts:
        place = len(parts) - 1 - parts[::-1].index("images")
        there = Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
        if there.is_file() or not image.with_suffix(".txt").is_file():
            return there
    return image.with_suffix(".txt")


def _scene(image: Path, root: Path, names: Sequence[str]) -> AnnotatedImage:
    path = _label_file(image)
    size = read_image_size(image)
    height, width = size or (1, 1)  # an unreadable file is listed and left out when it is opened
    boxes = []
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if line.strip():
                label, shares = _line(line, f"{path}, line {number}", names)
                left, top, right, bottom = shares
                box = (left * width, top * height, right * width, bottom * height)
                boxes.append(Box(*box, label))
    return AnnotatedImage(image, name_below(image, root), boxes, size, str(path))


def _line(
    line: str, where: str, names: Sequence[str]
) -> tuple[str, tuple[float, float, float, float]]:
    try:
        number, *values = (float(word) for word in line.split())
    except ValueError as error:
        raise BoxError(
            f"{where} is '{line.strip()[:60]}'; YOLO has a class number and shares of the image: 0 0.5 0.5 0.2 0.3."
        ) from error
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise BoxError(
            f"{where} has {len(values) + 1} numbers; YOLO has 5, or the corners of an outline."
        )
    if number != int(number) or not 0 <= number < len(names):
        raise BoxError(
            f"{where} is of class {number:g}; there are {len(names)}, counted from 0: {', '.join(names[:8])}."
        )
    if any(value > _MOST for value in values):
        raise BoxError(
            f"{where} holds {max(values):g}, but YOLO has shares of the image, from 0 to 1. Pixels are no YOLO: divide "
            "by the image's width and height, or give the data as COCO, VOC or CSV."
        )
    if len(values) > 4:  # an outline; its box
        across, down = values[::2], values[1::2]
        return names[int(number)], (min(across), min(down), max(across), max(down))
    x, y, w, h = values
    return names[int(number)], (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def _check_labels(scenes: Sequence[AnnotatedImage], root: Path) -> None:
    """Refuse images without a single label file, and label files without an image."""
    files = {Path(scene.where) for scene in scenes}
    present = {path for path in files if path.is_file()}
    if scenes and not present:
        raise BoxError(
            f"None of the {len(files)} images has a label file; looked for {sorted(files)[0]}. Put them into labels/ "
            "beside images/, or beside the images."
        )
    listed = {path.name for path in root.glob("*.txt")}
    known = {f for folder in {p.parent for p in present} for f in folder.glob("*.txt")}
    orphans = sorted(p for p in known - files if p.name not in listed)
    if orphans:
        raise BoxError(
            f"{len(orphans)} label files have no image, such as {orphans[0]}. Add the images, or take the files away."
        )
