"""Annotated images: what every format of boxes is read to."""

import codecs
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from vfm_runtime.errors import VfmError
from vfm_runtime.media.image import SIDEWAYS, read_orientation, read_size


class Box(NamedTuple):
    """One annotated object, as the file says, before any check."""

    left: float
    top: float
    right: float
    bottom: float
    label: str
    ignored: bool = False
    """A crowd, or hard to see: neither learned nor counted for or against an answer."""
    area: float = 0.0
    """Area in pixels where the file states one, as of an outline; 0 where it does not."""


class AnnotatedImage(NamedTuple):
    """One image of a split; its file need not exist."""

    path: Path
    name: str
    """Path below the data's root, with forward slashes."""
    boxes: list[Box]
    """From the image's upper left corner."""
    size: tuple[int, int] | None
    """Height and width as the annotation states them; None where it does not."""
    where: str
    """How to call the annotation in a message."""
    fractions: bool = False
    """Whether boxes are in fractions of the image, not in pixels."""


class BoxError(VfmError, ValueError):
    """Annotations that cannot be meant; the message says where, and what to do."""


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 as Windows may write it, without its byte-order mark.

    Raises:
        BoxError: It is missing, or in another encoding.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise BoxError(f"There is no file {path} (looked in {Path.cwd()}).") from error
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BoxError(
            f"{path} is not in UTF-8 (byte {error.start} is {content[error.start]:#04x}). Save it as UTF-8, or copy it "
            "again."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        BoxError: It is missing, or no JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        whole = error.doc.rstrip().endswith(("}", "]"))
        cut = "" if whole else "It ends in the middle: the file was cut off. "
        raise BoxError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as JSON: {error}. {cut}Export or copy it again."
        ) from error


def name_below(path: Path, root: Path) -> str:
    """A path as it is called in results."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


class ImageHeader(NamedTuple):
    """What the header of an image file says."""

    size: tuple[int, int]
    """Height and width of the upright image, in pixels."""
    orientation: int
    """EXIF orientation, 1 to 8: how the stored image is turned and mirrored to be upright."""

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width of the image as it is stored, in pixels."""
        return self.size[::-1] if self.orientation in SIDEWAYS else self.size


def read_image_header(path: Path) -> ImageHeader | None:
    """The size and orientation of an image file; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            return ImageHeader(read_size(image, str(path)), read_orientation(image, str(path)))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # it is listed as unreadable when it is opened


def enclose_rotated(box: Box, degrees: float) -> Box:
    """The upright box around a box that is rotated about its center."""
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    width, height = abs(box.right - box.left), abs(box.bottom - box.top)
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    across, down = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return box._replace(left=x - across, top=y - down, right=x + across, bottom=y + down)


def require_keys(entry: Any, keys: Sequence[str], where: str) -> Mapping[str, Any]:
    """Refuse an entry of a file that lacks what its format promises.

    Raises:
        BoxError: With the keys there are.
    """
    if not isinstance(entry, Mapping):
        raise BoxError(f"{where} is {entry!r:.80}; expected an object with {', '.join(keys)}.")
    for key in keys:
        if key not in entry:
            raise BoxError(f"{where} has no '{key}'. It has: {', '.join(map(str, entry))}.")
    return entry


class Tile(NamedTuple):
    """The part of a large photo that a record shows."""

    left: int
    """Left edge of the tile in the photo, in pixels."""
    top: int
    """Upper edge of the tile in the photo, in pixels."""
    photo: "Annotation"
    """The boxes of the whole photo."""
    labels: tuple[int, ...]
    """Class of each box of the photo."""


class Annotation(NamedTuple):
    """The checked boxes of a record. M boxes; their classes are the record's labels, in the same order."""

    corners: NDArray[np.float32]
    """[M, 4], left, top, right, bottom in pixels, inside of the image."""
    ignored: NDArray[np.bool_]
    """[M], neither learned nor counted for or against an answer."""
    size: tuple[int, int]
    """Height and width of the image, or of the tile."""
    tile: Tile | None = None
    """For large photos that are cut up."""
    areas: NDArray[np.float32] | None = None
    """[M], area of each object in pixels, by which it is small, medium or large; None for those of the boxes."""
