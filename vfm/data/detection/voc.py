"""Pascal VOC: an XML file for each image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from vfm_runtime.media.image import IMAGE_SUFFIXES

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.detection.annotation import AnnotatedImage, Box, BoxError, name_below
from vfm.data.layouts import Reading

_LISTS = "ImageSets/Main"


def find_voc(root: Path) -> dict[str, list[Path]]:
    """The XML files of each split, or of ""; none where this is no VOC.

    Splits are those of ImageSets/Main/train.txt and its like, or else of folders such as train/.
    """
    if not root.is_dir():
        return {}
    lists = {
        SPLIT_FOLDERS[path.stem]: path
        for path in sorted(root.glob(f"{_LISTS}/*.txt"))
        if path.stem in SPLIT_FOLDERS
    }
    if lists:
        return {split: list(_listed(path, root)) for split, path in lists.items()}
    folders = {
        split: sorted((root / name).rglob("*.xml"))
        for name, split in SPLIT_FOLDERS.items()
        if (root / name).is_dir()
    }
    found = {split: paths for split, paths in folders.items() if paths}
    if found:
        return found
    # Editors keep XML files of their own in hidden folders.
    paths = [
        p for p in sorted(root.rglob("*.xml")) if not p.relative_to(root).as_posix().startswith(".")
    ]
    return {"": paths} if paths else {}


def read_voc(root: Path) -> Reading[AnnotatedImage]:
    """Read every split; pixels are taken as the files give them, from 0.

    Args:
        root: The folder of the data.

    Raises:
        BoxError: There are no XML files, or one is damaged.
    """
    files = find_voc(root)
    if not files:
        raise BoxError(
            f"{root} has no XML files of Pascal VOC, neither in Annotations/ nor elsewhere."
        )
    splits = {split: [_scene(path, root) for path in paths] for split, paths in files.items()}
    return Reading(splits)


def _listed(path: Path, root: Path) -> Iterable[Path]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        if name := line.split(" ")[0].strip():
            yield root / "Annotations" / f"{name}.xml"


def _scene(path: Path, root: Path) -> AnnotatedImage:
    try:
        tree = ElementTree.fromstring(path.read_bytes())  # expat reads no external entities
    except FileNotFoundError as error:
        raise BoxError(f"{root / _LISTS} names '{path.stem}', but there is no {path}.") from error
    except ElementTree.ParseError as error:
        raise BoxError(
            f"{path} cannot be read as XML: {error}. Export or copy it again."
        ) from error
    if tree.tag != "annotation":
        raise BoxError(f"{path} is no Pascal VOC: it starts with <{tree.tag}>, not <annotation>.")
    image = _image(path, tree, root)
    boxes = [_box(entry, path) for entry in tree.iter("object")]
    return AnnotatedImage(image, name_below(image, root), boxes, _size(tree), str(path))


def _box(entry: ElementTree.Element, path: Path) -> Box:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise BoxError(f"{path}: an object has no name.")
    try:
        values = [
            float(entry.findtext(f"bndbox/{k}") or "") for k in ("xmin", "ymin", "xmax", "ymax")
        ]
    except ValueError as error:
        raise BoxError(
            f"{path}: the box of a '{name}' lacks one of xmin, ymin, xmax, ymax, or it is no number."
        ) from error
    difficult = (entry.findtext("difficult") or "0").strip() == "1"
    return Box(values[0], values[1], values[2], values[3], name, difficult)


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    height, width = tree.findtext("size/height"), tree.findtext("size/width")
    if not height or not width or not float(height) or not float(width):
        return None
    return int(float(height)), int(float(width))


def _image(path: Path, tree: ElementTree.Element, root: Path) -> Path:
    """The image of an XML file: by the name it states, or by its own."""
    stated = Path((tree.findtext("filename") or "").replace("\\", "/")).name
    names = [stated] if stated else []
    names += [path.stem + suffix for suffix in IMAGE_SUFFIXES]
    places = [
        root / "JPEGImages",
        path.parent,
        path.parent.parent / "images",
        root / "images",
        root,
    ]
    for place in places:
        for name in names:
            if (place / name).is_file():
                return place / name
    return places[0 if places[0].is_dir() else 1] / names[0]
