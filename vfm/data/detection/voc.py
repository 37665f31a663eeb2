"""Pascal VOC: an XML file for each image."""

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
        return {split: _read_list(path, root) for split, path in lists.items()}
    folders = {
        split: root / name for name, split in SPLIT_FOLDERS.items() if (root / name).is_dir()
    }
    splits = {split: sorted(folder.rglob("*.xml")) for split, folder in folders.items()}
    if any(splits.values()):
        return {split: paths for split, paths in splits.items() if paths}
    # Editors keep XML files of their own in hidden folders.
    paths = [p for p in sorted(root.rglob("*.xml")) if not name_below(p, root).startswith(".")]
    return {"": paths} if paths else {}


def read_voc(root: Path) -> Reading[AnnotatedImage]:
    """Read every split below a folder; pixels are taken as the files give them, from 0.

    Raises:
        BoxError: There are no XML files, or one is damaged.
    """
    files = find_voc(root)
    if not files:
        raise BoxError(
            f"{root} has no XML files of Pascal VOC, neither in Annotations/ nor elsewhere."
        )
    return Reading(
        {split: [_read_image(path, root) for path in paths] for split, paths in files.items()}
    )


def _read_list(path: Path, root: Path) -> list[Path]:
    """The XML files of a list of names, each with a flag behind it where the list is of one class."""
    lines = path.read_text(encoding="utf-8").split("\n")
    names = [line.split(" ")[0].strip() for line in lines]
    return [root / "Annotations" / f"{name}.xml" for name in names if name]


def _read_image(path: Path, root: Path) -> AnnotatedImage:
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
    image = _find_image(path, tree, root)
    boxes = [_read_box(entry, path) for entry in tree.iter("object")]
    sides = [float(tree.findtext(f"size/{side}") or 0) for side in ("height", "width")]
    size = (int(sides[0]), int(sides[1])) if all(sides) else None
    return AnnotatedImage(image, name_below(image, root), boxes, size, str(path))


def _read_box(entry: ElementTree.Element, path: Path) -> Box:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise BoxError(f"{path}: an object has no name.")
    keys = ("xmin", "ymin", "xmax", "ymax")
    try:
        left, top, right, bottom = (float(entry.findtext(f"bndbox/{key}") or "") for key in keys)
    except ValueError as error:
        raise BoxError(
            f"{path}: the box of a '{name}' lacks one of xmin, ymin, xmax, ymax, or it is no number."
        ) from error
    difficult = (entry.findtext("difficult") or "0").strip() == "1"
    return Box(left, top, right, bottom, name, difficult)


def _find_image(path: Path, tree: ElementTree.Element, root: Path) -> Path:
    """The image of an XML file: by the name it states, or by its own."""
    stated = Path((tree.findtext("filename") or "").replace("\\", "/")).name
    names = [name for name in (stated, *(path.stem + suffix for suffix in IMAGE_SUFFIXES)) if name]
    folders = [root / "JPEGImages", path.parent, path.parent.parent / "images"]
    for folder in (*folders, root / "images", root):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return folders[0 if folders[0].is_dir() else 1] / names[0]
