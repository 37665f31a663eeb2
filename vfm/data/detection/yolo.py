"""YOLO: a text file for each image, a line for each object in fractions of the image; classes in data.yaml."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import yaml
from vfm_runtime.media.files import find_images
from vfm_runtime.media.image import IMAGE_SUFFIXES

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.detection.annotation import (
    AnnotatedImage,
    Box,
    BoxError,
    name_below,
    read_text,
)
from vfm.data.detection.files import ImageFiles
from vfm.data.layouts import Reading

_YAML = (".yaml", ".yml")
_NAMES = ("classes.txt", "obj.names", "labels.txt")
# Where tools that have no folder of the data set itself put their list of names.
_NAMES_BESIDE_LABELS = ("labels/classes.txt", "labels/*/classes.txt", "*/labels/classes.txt")
_NAMES_BELOW = (*_NAMES_BESIDE_LABELS, "*/_darknet.labels")
# Labelling tools round; beyond this the numbers are no fractions.
_MOST = 1.01
_LEAST_LINES = 3
# An obj.data of Darknet has a few lines; other files end so too.
_MOST_BYTES = 10_000


class _Objects(NamedTuple):
    """What the lines of label files mean."""

    names: dict[int, str]
    keypoints: int
    """Numbers behind the box of a line, of the points of a pose; 0 where there are none."""
    pose_like: list[bool]
    """Of each outline that was read, whether it could be a box and points inside of it."""


def find_yolo(root: Path) -> Path | None:
    """The file that names the classes: a data.yaml, an obj.data, or a list of names; None where this is no YOLO."""
    if root.is_file():
        return root if root.suffix in (*_YAML, ".data") else None
    darknet = [p for p in sorted(root.glob("*.data")) if p.stat().st_size < _MOST_BYTES]
    settings = [*sorted(root.glob("*.y*ml")), *darknet]
    stated = [path for path in settings if _read_settings(path).get("names")]
    lists = [root / name for name in _NAMES if (root / name).is_file()]
    below = (path for pattern in _NAMES_BELOW for path in sorted(root.glob(pattern)))
    return next(iter([*stated, *lists]), None) or next(below, None)


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
    folder = root if root.is_dir() else root.parent
    settings = _read_settings(file) if file.suffix in (*_YAML, ".data") else {}
    names = _read_names(settings.get("names"), file, folder)
    objects = _Objects(names, _count_keypoints(settings, file), [])
    files = ImageFiles()
    notes: list[str] = []
    splits: dict[str, list[AnnotatedImage]] = {}
    for split, images in _find_images(settings, folder, files, notes).items():
        splits[split] = [_read_image(path, folder, objects) for path in images]
        _check_label_files(splits[split])
    _check_orphans([image for images in splits.values() for image in images], folder)
    notes += files.describe()
    if len(objects.pose_like) >= _LEAST_LINES and all(objects.pose_like):
        notes.append(
            f"The lines of {root} are read as outlines, but every one of them could be a box and points inside of it. "
            "If they are poses, write kpt_shape: [points, 2 or 3] into its data.yaml, and the boxes are taken."
        )
    return Reading(splits, list(names.values()), notes)


def _read_settings(path: Path) -> dict[str, Any]:
    """What a data.yaml, or an obj.data of Darknet, states: everything as text, so that a class may be called `no`."""
    if path.suffix == ".data":
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        pairs = (line.partition("=") for line in lines if "=" in line)
        return {key.strip(): value.strip() for key, _, value in pairs}
    text = read_text(path)
    try:
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise BoxError(f"{path} is not valid YAML: {error}") from error
    return content if isinstance(content, dict) else {}


def _read_names(stated: Any, file: Path, folder: Path) -> dict[int, str]:
    """Name of each class by its number: as settings state it, or as a list of names does."""
    lists = {file: stated}
    if isinstance(stated, str):
        paths = [folder / stated, folder / Path(stated).name]
        file = next((path for path in paths if path.is_file()), paths[0])
        lists = {file: read_text(file).rstrip("\n ").split("\n")}
    elif stated is None:
        # A labelling tool writes one list a folder, each in its own order.
        alike = sorted(folder.glob("*/" * (len(file.relative_to(folder).parts) - 1) + file.name))
        lists = {path: read_text(path).rstrip("\n ").split("\n") for path in (file, *alike)}
    first = _number_names(lists[file], file)
    for path, listed in lists.items():
        if _number_names(listed, path) != first:
            raise BoxError(
                f"{path} names other classes than {file}, or in another order, so a number means one class here and "
                "another there. Give all label files one list of names."
            )
    twice = [name for name, count in Counter(first.values()).items() if count > 1]
    if twice:
        raise BoxError(f"{file} names the class '{twice[0]}' twice. Join them, or rename one.")
    return first


def _number_names(listed: Any, file: Path) -> dict[int, str]:
    pairs = listed.items() if isinstance(listed, Mapping) else enumerate(listed)
    try:
        names = {int(key): str(name).strip() for key, name in pairs}
    except ValueError as error:
        raise BoxError(
            f"The names of {file} have keys that are no numbers: {', '.join(map(str, listed))}. Write names: "
            "{0: first, 1: second}, or names: [first, second]."
        ) from error
    # An empty name takes a number, but no object may be of it.
    return {number: name for number, name in sorted(names.items()) if name}


def _count_keypoints(settings: Mapping[str, Any], file: Path) -> int:
    """Numbers of the points of a pose on a line: points times coordinates; 0 where there are none."""
    shape = settings.get("kpt_shape")
    if not shape:
        return 0
    try:
        points, dimensions = (int(number) for number in shape)
    except (TypeError, ValueError) as error:
        raise BoxError(
            f"{file}: kpt_shape is {shape}; expected the number of points, and 2 or 3 numbers a point: [17, 3]."
        ) from error
    return points * dimensions


def _find_images(
    settings: Mapping[str, Any], folder: Path, files: ImageFiles, notes: list[str]
) -> dict[str, list[Path]]:
    """Image files of each split: as the settings say, as lists of images do, or by the folders' names."""
    base = folder / str(settings.get("path") or "")
    # Written on another machine, it names a folder that does not exist here; the splits lie beside the file.
    base = base if base.is_dir() else folder
    stated: dict[str, Any] = {
        split: settings[key]
        for key, split in SPLIT_FOLDERS.items()
        if settings.get(key) not in (None, "", "null", "~")
    }
    stated = stated or _find_lists(folder)
    if stated:
        return {
            split: _list_images(value, base, split, files, notes) for split, value in stated.items()
        }
    images = folder / "images"
    folders = {
        split: parent / key
        for parent in (folder, images)
        for key, split in SPLIT_FOLDERS.items()
        if (parent / key).is_dir()
    }
    for path in sorted(folder.glob("obj_*_data")):
        split = SPLIT_FOLDERS.get(path.name[4:-5].lower(), "")
        folders.setdefault(split, path)
    if not folders:
        return {"": find_images(images if images.is_dir() else folder)}
    return {split: find_images(path) for split, path in folders.items()}


def _find_lists(folder: Path) -> dict[str, str]:
    """Lists of images of Darknet, train.txt and its like, or one of all images."""
    lists: dict[str, str] = {}
    for path in sorted(folder.glob("*.txt")):
        split = SPLIT_FOLDERS.get(path.stem.lower(), "" if path.stem == "images" else None)
        if split is None or split in lists:
            continue
        first = read_text(path).lstrip().partition("\n")[0].strip()
        if first.lower().endswith(IMAGE_SUFFIXES):
            lists[split] = path.name
    return {split: name for split, name in lists.items() if split} or lists


def _list_images(
    value: Any, base: Path, split: str, files: ImageFiles, notes: list[str]
) -> list[Path]:
    """The images of a split by its entry in data.yaml: folders, or lists of files."""
    images: list[Path] = []
    for item in value if isinstance(value, list) else [value]:
        # Roboflow writes ../train/images, meant from a folder below; Darknet data/train.txt, meant from one above.
        names = [str(item), str(item).removeprefix("../"), str(item).removeprefix("data/")]
        paths = [base / name for name in names]
        path = next((path for path in paths if path.exists()), None)
        # An absolute path, with a drive or without; the first folders are those of another machine.
        parts = PureWindowsPath(str(item)).parts if PureWindowsPath(str(item)).root else ()
        shorter = [base.joinpath(*parts[cut:]) for cut in range(1, len(parts))]
        if path is None and (path := next((path for path in shorter if path.exists()), None)):
            notes.append(
                f"The {split} images are said to be in {item}, in folders of another machine; {path} is taken."
            )
        if path is None:
            raise BoxError(
                f"The {split} images are said to be in {item}, but there is no {paths[0]}. Mend data.yaml."
            )
        if path.is_dir():
            images += find_images(path)
        else:
            names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
            images += files.find_below([path.parent, base], names)[0]
    return images


def find_label_file(image: Path) -> Path:
    """`labels/` in place of the last `images/` of the path, or beside the image."""
    parts = image.parts
    beside = image.with_suffix(".txt")
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        path = Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
        if path.is_file() or not beside.is_file():
            return path
    return beside


def _read_image(image: Path, root: Path, objects: _Objects) -> AnnotatedImage:
    path = find_label_file(image)
    boxes = []
    if path.is_file():
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if line.strip():
                boxes.append(_read_line(line, f"{path}, line {number}", objects))
    return AnnotatedImage(image, name_below(image, root), boxes, None, str(path), fractions=True)


def _read_line(line: str, where: str, objects: _Objects) -> Box:
    """The box of a line, in fractions of the image."""
    names = objects.names
    try:
        number, *values = (float(word) for word in line.split())
    except ValueError as error:
        raise BoxError(
            f"{where} is '{line.strip()[:60]}'; YOLO has a class number and shares of the image: 0 0.5 0.5 0.2 0.3."
        ) from error
    outline = len(values) >= 6 and len(values) % 2 == 0
    if objects.keypoints:
        if len(values) not in (4, 4 + objects.keypoints):
            raise BoxError(
                f"{where} has {len(values) + 1} numbers; with this kpt_shape a line has {5 + objects.keypoints}, or 5 "
                "of a box alone. Mend kpt_shape in data.yaml."
            )
        values = values[:4]  # the points of a pose lie behind its box
    elif len(values) != 4 and not outline:
        raise BoxError(
            f"{where} has {len(values) + 1} numbers; YOLO has 5, or the corners of an outline. Poses need their "
            "kpt_shape in data.yaml; a sixth number is the confidence of a model's boxes, which are no labels before "
            "they were looked at: write them without it."
        )
    if number not in names:
        numbered = ", ".join(f"{key} {name}" for key, name in list(names.items())[:8])
        raise BoxError(f"{where} is of class {number:g}, which is not listed. Classes: {numbered}.")
    if any(value > _MOST for value in values):
        raise BoxError(
            f"{where} holds {max(values):g}, but YOLO has shares of the image, from 0 to 1. Pixels are no YOLO: divide "
            "by the image's width and height, or give the data as COCO, VOC or CSV. Poses need their kpt_shape in "
            "data.yaml."
        )
    label = names[int(number)]
    x, y, w, h = values[:4]
    box = Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2, label)
    if len(values) == 4:
        return box
    across, down = values[::2], values[1::2]
    pairs = zip(across[2:], down[2:], strict=True)
    objects.pose_like.append(
        all(box.left <= x <= box.right and box.top <= y <= box.bottom for x, y in pairs)
    )
    return Box(min(across), min(down), max(across), max(down), label)


def _check_label_files(images: Sequence[AnnotatedImage]) -> None:
    """Refuse images of which none has a label file, or two share one."""
    files = {Path(image.where) for image in images}
    if images and not any(path.is_file() for path in files):
        raise BoxError(
            f"None of the {len(files)} images has a label file; looked for {sorted(files)[0]}. Put them into labels/ "
            "beside images/, or beside the images."
        )
    owners: dict[str, AnnotatedImage] = {}
    for image in images:
        other = owners.setdefault(image.where, image)
        if other.path != image.path and Path(image.where).is_file():
            raise BoxError(
                f"{image.where} would be of '{other.name}' and of '{image.name}', and nothing says of which. Take one "
                "of the images away, or rename it."
            )


def _check_orphans(images: Sequence[AnnotatedImage], root: Path) -> None:
    """Refuse label files without an image."""
    files = {Path(image.where) for image in images}
    texts = {path for folder in {path.parent for path in files} for path in folder.glob("*.txt")}
    lists = {"classes.txt", *(path.name for path in root.glob("*.txt"))}
    orphans = {path for path in texts - files if path.name not in lists}
    if orphans:
        # A list of images may leave out some that are there.
        folders = {image.path.parent for image in images}
        orphans -= {find_label_file(path) for folder in folders for path in find_images(folder)}
    if orphans:
        raise BoxError(
            f"{len(orphans)} label files have no image, such as {min(orphans)}. Add the images, or take the files away."
        )
