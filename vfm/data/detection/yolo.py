"""YOLO: a text file for each image, a line for each object in fractions of the image; classes in data.yaml."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from vfm_runtime.media.image import find_images

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.detection.annotation import AnnotatedImage, Box, BoxError, name_below, read_image_size
from vfm.data.layouts import Reading

_NAMES = ("classes.txt", "obj.names", "labels.txt")
# Labelling tools round; beyond this the numbers are no fractions.
_MOST = 1.01


def find_yolo(root: Path) -> Path | None:
    """The file that names the classes: a data.yaml, or a list of names; None where this is no YOLO."""
    if root.is_file():
        return root if root.suffix in (".yaml", ".yml") else None
    yamls = [p for p in sorted(root.glob("*.y*ml")) if _read_settings(p).get("names") is not None]
    lists = [root / name for name in _NAMES if (root / name).is_file()]
    return next(iter([*yamls, *lists]), None)


def read_yolo(root: Path) -> Reading[AnnotatedImage]:
    """Read every split of a folder, or of a data.yaml.

    Raises:
        BoxError: A file is missing, or holds no lines of YOLO.
    """
    file = find_yolo(root)
    if file is None:
        raise BoxError(
            f"{root} names no classes: no data.yaml with 'names', and none of {', '.join(_NAMES)}. Write one: "
            "names: [first, second]."
        )
    settings = _read_settings(file) if file.suffix in (".yaml", ".yml") else {}
    names = settings["names"] if settings else file.read_text(encoding="utf-8").split("\n")
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    names = [name for item in names if (name := str(item).strip())]
    splits: dict[str, list[AnnotatedImage]] = {}
    for split, images in _find_images(settings, file.parent).items():
        splits[split] = [_read_image(path, file.parent, names) for path in images]
        _check_label_files(splits[split], file.parent)
    return Reading(splits, names)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BoxError(f"{path} is not valid YAML: {error}") from error
    return content if isinstance(content, dict) else {}


def _find_images(settings: Mapping[str, Any], folder: Path) -> dict[str, list[Path]]:
    """Image files of each split: as the data.yaml says, or by the folders' names."""
    base = folder / str(settings.get("path") or "")
    # Written on another machine, it names a folder that does not exist here; the splits lie beside the file.
    base = base if base.is_dir() else folder
    stated = {split: settings[key] for key, split in SPLIT_FOLDERS.items() if settings.get(key)}
    if stated:
        return {split: _list_images(value, base, split) for split, value in stated.items()}
    images = folder / "images"
    folders = {
        split: parent / key
        for parent in (folder, images)
        for key, split in SPLIT_FOLDERS.items()
        if (parent / key).is_dir()
    }
    if not folders:
        return {"": find_images(images if images.is_dir() else folder)}
    return {split: find_images(path) for split, path in folders.items()}


def _list_images(value: Any, base: Path, split: str) -> list[Path]:
    """The images of a split by its entry in data.yaml: folders, or lists of files."""
    images: list[Path] = []
    for item in value if isinstance(value, list) else [value]:
        # Roboflow writes ../train/images, meant from a folder below.
        paths = [base / str(item), base / str(item).removeprefix("../")]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            raise BoxError(
                f"The {split} images are said to be in {item}, but there is no {paths[0]}. Mend data.yaml."
            )
        if path.is_dir():
            images += find_images(path)
        else:
            lines = path.read_text(encoding="utf-8").split("\n")
            images += [path.parent / line.strip() for line in lines if line.strip()]
    return images


def _find_label_file(image: Path) -> Path:
    """`labels/` in place of the last `images/` of the path, or beside the image."""
    parts = image.parts
    beside = image.with_suffix(".txt")
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        path = Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
        if path.is_file() or not beside.is_file():
            return path
    return beside


def _read_image(image: Path, root: Path, names: Sequence[str]) -> AnnotatedImage:
    path = _find_label_file(image)
    size = read_image_size(image)
    height, width = size or (1, 1)  # an unreadable file is listed and left out when it is opened
    boxes = []
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if line.strip():
                box = _read_line(line, f"{path}, line {number}", names)
                left, top, right, bottom = box[:4]
                scaled = (left * width, top * height, right * width, bottom * height)
                boxes.append(Box(*scaled, box.label))
    return AnnotatedImage(image, name_below(image, root), boxes, size, str(path))


def _read_line(line: str, where: str, names: Sequence[str]) -> Box:
    """The box of a line, in fractions of the image."""
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
    label = names[int(number)]
    if len(values) > 4:  # an outline; its box
        across, down = values[::2], values[1::2]
        return Box(min(across), min(down), max(across), max(down), label)
    x, y, w, h = values
    return Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2, label)


def _check_label_files(images: Sequence[AnnotatedImage], root: Path) -> None:
    """Refuse images without a single label file, and label files without an image."""
    files = {Path(image.where) for image in images}
    present = {path for path in files if path.is_file()}
    if images and not present:
        raise BoxError(
            f"None of the {len(files)} images has a label file; looked for {sorted(files)[0]}. Put them into labels/ "
            "beside images/, or beside the images."
        )
    lists = {path.name for path in root.glob("*.txt")}
    texts = {path for folder in {path.parent for path in present} for path in folder.glob("*.txt")}
    orphans = sorted(path for path in texts - files if path.name not in lists)
    if orphans:
        raise BoxError(
            f"{len(orphans)} label files have no image, such as {orphans[0]}. Add the images, or take the files away."
        )
