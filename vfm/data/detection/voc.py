"""Pascal VOC: an XML file for each image."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from vfm_runtime.media.files import list_files
from vfm_runtime.media.image import IMAGE_SUFFIXES

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.detection.annotation import (
    AnnotatedImage,
    Box,
    BoxError,
    enclose_rotated,
    name_below,
    read_text,
)
from vfm.data.detection.files import ImageFiles
from vfm.data.detection.foreign import explain_foreign
from vfm.data.layouts import Reading

_LISTS = "ImageSets/Main"
_IMAGE_FOLDERS = ("JPEGImages", "images", "data", "img")
_FLAGS = ("-1", "0", "1")
# The development kit of the challenge; its pixels are counted from 1.
_DEVKIT = "The VOC"
_LEAST_BOXES = 20


class _Source(NamedTuple):
    """What is read, and what was noted on the way."""

    root: Path
    files: ImageFiles
    origin: int | None
    """Number of the first pixel; None for that of the writer."""
    events: Counter[str]
    examples: dict[str, str]

    def note(self, event: str, example: str) -> None:
        """Count an event, and keep the first example of it."""
        self.events[event] += 1
        self.examples.setdefault(event, example)


def find_voc(root: Path) -> dict[str, list[Path]]:
    """The XML files of each split, or of ""; none where this is no VOC.

    Splits are those of ImageSets/Main/train.txt and its like, or else of folders such as train/.
    """
    if not root.is_dir():
        return {}
    lists = {
        SPLIT_FOLDERS[path.stem.lower()]: path
        for path in sorted(root.glob(f"{_LISTS}/*.txt"))
        if path.stem.lower() in SPLIT_FOLDERS
    }
    if lists:
        return {split: _read_list(path, root) for split, path in lists.items()}
    folders = {
        split: root / name for name, split in SPLIT_FOLDERS.items() if (root / name).is_dir()
    }
    splits = {split: list_files(folder, (".xml",)) for split, folder in folders.items()}
    if any(splits.values()):
        return {split: paths for split, paths in splits.items() if paths}
    paths = list_files(root, (".xml",))
    return {"": paths} if paths else {}


def read_voc(root: Path, box_origin: int | None = None) -> Reading[AnnotatedImage]:
    """Read every split below a folder.

    Args:
        root: Folder of the data.
        box_origin: Number of the first pixel of a side, 0 or 1; None takes 1 for the development kit of the challenge,
            which says so, and 0 for all others.

    Raises:
        BoxError: There are no XML files, one is damaged, or two are of one image.
    """
    files = find_voc(root)
    if not files:
        raise BoxError(
            f"{root} has no XML files of Pascal VOC, neither in Annotations/ nor elsewhere."
        )
    source = _Source(root, ImageFiles(), box_origin, Counter(), {})
    splits = {
        split: [_read_image(path, source) for path in paths] for split, paths in files.items()
    }
    for images in splits.values():
        owners: dict[Path, AnnotatedImage] = {}
        for image in images:
            other = owners.setdefault(image.path, image)
            if other is not image:
                raise BoxError(
                    f"{other.where} and {image.where} are both of {image.path}. Mend the <filename> of one, or take it "
                    "away."
                )
    notes = [
        f"{count} XML files of {root} {event}, such as {source.examples[event]}."
        for event, count in source.events.items()
    ]
    if box_origin is None and _seems_counted_from_one(
        [i for part in splits.values() for i in part]
    ):
        notes.append(
            f"The boxes of {root} seem to be counted from pixel 1: none begins at 0. They are read as from 0, which "
            "may be off by one pixel; set --data.box_origin to 1 or 0."
        )
    return Reading(splits, None, [*notes, *source.files.describe()])


def _seems_counted_from_one(images: Sequence[AnnotatedImage]) -> bool:
    sized = [(box, image.size) for image in images for box in image.boxes if image.size]
    starts = {value for box, _ in sized for value in (box.left, box.top)}
    return (
        len(sized) >= _LEAST_BOXES
        and min(starts) == 1
        and any(box.right == width or box.bottom == height for box, (height, width) in sized)
    )


def _read_list(path: Path, root: Path) -> list[Path]:
    """The XML files of a list of names, each with a flag behind it where the list is of one class."""
    files = []
    folder = root / "Annotations"
    for line in read_text(path).split("\n"):
        name = line.strip()
        if not name:
            continue
        words = name.rsplit(None, 1)
        if len(words) == 2 and words[1] in _FLAGS and not (folder / f"{name}.xml").is_file():
            name = words[0]
        files.append(folder / f"{name.strip(chr(34))}.xml")
    return files


def _read_image(path: Path, source: _Source) -> AnnotatedImage:
    root = source.root
    try:
        tree = ElementTree.fromstring(path.read_bytes())  # expat reads no external entities
    except FileNotFoundError as error:
        raise BoxError(f"{root / _LISTS} names '{path.stem}', but there is no {path}.") from error
    except ElementTree.ParseError as error:
        raise BoxError(
            f"{path} cannot be read as XML: {error}. Export or copy it again."
        ) from error
    if tree.tag != "annotation":
        raise BoxError(
            explain_foreign(path)
            or f"{path} is no Pascal VOC: it starts with <{tree.tag}>, not <annotation>. Take it away."
        )
    image = _find_image(path, tree, source)
    origin = source.origin
    if origin is None:
        origin = int((tree.findtext("source/database") or "").startswith(_DEVKIT))
    boxes = [_read_box(entry, path, origin, source) for entry in tree.iter("object")]
    try:
        sides = [float(tree.findtext(f"size/{side}") or 0) for side in ("height", "width")]
    except ValueError as error:
        raise BoxError(
            f"{path}: its size is no number. Mend the <size>, or take it out."
        ) from error
    size = (int(sides[0]), int(sides[1])) if all(sides) else None
    return AnnotatedImage(image, name_below(image, root), boxes, size, str(path))


def _read_box(entry: ElementTree.Element, path: Path, origin: int, source: _Source) -> Box:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise BoxError(f"{path}: an object has no name.")
    keys = ("xmin", "ymin", "xmax", "ymax")
    try:
        left, top, right, bottom = (float(entry.findtext(f"bndbox/{key}") or "") for key in keys)
        rotation = next(
            (
                float(one.findtext("value") or 0)
                for one in entry.iterfind("attributes/attribute")
                if one.findtext("name") == "rotation"
            ),
            0.0,
        )
    except ValueError as error:
        raise BoxError(
            f"{path}: the box of a '{name}' lacks one of xmin, ymin, xmax, ymax, or it is no number."
        ) from error
    difficult = (entry.findtext("difficult") or "0").strip().lower() in ("1", "true", "yes")
    # Both ends are pixels of the object: counted from 1, the right end is also the number of pixels up to it.
    box = Box(left - origin, top - origin, right, bottom, name, difficult)
    if rotation % 180:
        source.note("have rotated boxes, and the upright box around each is taken", path.name)
        return enclose_rotated(box, rotation)
    return box


def _find_image(path: Path, tree: ElementTree.Element, source: _Source) -> Path:
    """The image of an XML file: by its own name, or else by the name that it states."""
    files, folders = source.files, _list_image_folders(path, source.root)
    stated = Path((tree.findtext("filename") or "").strip().replace("\\", "/")).name
    has_suffix = stated.lower().endswith(IMAGE_SUFFIXES)
    same = (Path(stated).stem if has_suffix else stated) in ("", path.stem)
    if same and has_suffix:
        image = next((p for folder in folders if (p := files.find(folder, stated))), None)
        if image is not None:
            return image
    for folder in folders:
        images = files.find_stem(folder, path.stem)
        if len(images) > 1:
            raise BoxError(
                f"{path} may be of {images[0].name} or of {images[1].name}, both in {folder}, and its <filename> "
                f"'{stated}' says neither. Write the one that is meant, or take the other away."
            )
        if images:
            if not same:
                event = "state the name of another image than their own, which is taken"
                source.note(event, f"{path.name} ('{stated}', not {images[0].name})")
            return images[0]
    image = next((p for folder in folders if stated and (p := files.find(folder, stated))), None)
    return image or folders[0] / (stated or f"{path.stem}.jpg")


def _list_image_folders(path: Path, root: Path) -> list[Path]:
    """Where the image of an XML file may lie: in a folder beside that of the annotations, below it as the file is."""
    parts = path.relative_to(root).parts[:-1]
    mirrored = [
        Path(root, *parts[:index], name, *parts[index + 1 :])
        for index in range(len(parts))
        for name in _IMAGE_FOLDERS
    ]
    flat = [path.parent, *(base / n for base in (root, path.parent.parent) for n in _IMAGE_FOLDERS)]
    folders = [*dict.fromkeys([*mirrored, *flat, root])]
    return [folder for folder in folders if folder.is_dir()] or [path.parent]
