"""Images: opened in one way for training and production, so that both see the same pixels."""

import errno
import io
import logging
import os
import struct
import zlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vfm_runtime.errors import VfmError

Pixels: TypeAlias = NDArray[np.uint8]
"""Uint8 RGB, [height, width, 3]."""

ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[Any] | Image.Image
)
"""Everything that `open_image` opens."""

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif"),
    *(".jp2", ".ppm", ".pgm", ".pbm"),
)
"""Names of image files end so; compared in lower case."""

_log = logging.getLogger(__name__)

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations of images whose height is that of the stored image's width."""

DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RuntimeError, MemoryError, struct.error, zlib.error),
)
"""What Pillow's decoders were seen to raise on damaged files; its own errors are among the kinds of these."""

_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_PNG_END = b"IEND\xaeB`\x82"
_UINT8 = "Give uint8 values 0..255 of shape [height, width, 3] in the order red, green, blue."


class ImageError(VfmError, ValueError):
    """An image, its name is `source`, cannot be opened; `reason` says why, `remedy` what to do."""

    def __init__(self, source: str, reason: str, remedy: str) -> None:
        self.source = source
        self.reason = reason
        self.remedy = remedy
        super().__init__(source, reason, remedy)

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}. {self.remedy}"


def open_image(source: ImageSource, *, formats: tuple[str, ...] | None = None) -> Pixels:
    """Open an image as uint8 RGB, [height, width, 3], upright and without alpha.

    The EXIF orientation is applied, the first frame of an animation taken, alpha laid over white,
    16-bit grey scaled to 8 bits, and every other mode converted to RGB.

    Args:
        source: Path of a file, its bytes, a uint8 array or an image of Pillow.
        formats: Pillow's names of the formats that a file may have; None for all.

    Raises:
        ImageError: The file is missing, damaged or no image, or the array has another shape or type.
    """
    if isinstance(source, np.ndarray):
        return _convert_array(source)
    if isinstance(source, Image.Image):
        return _convert_image(source, f"Pillow image {source.mode} {source.width}x{source.height}")
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _decode_bytes(data, f"image of {len(data)} bytes", formats)
    if isinstance(source, str | os.PathLike):
        return _decode_bytes(_read(source), os.fspath(source), formats)
    raise ImageError(
        f"{type(source).__name__} object",
        "not an image",
        "Give a path, the bytes of a file, a uint8 array or an image of Pillow.",
    )


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the image files in a folder and the folders below it, as `list_files` does.

    Raises:
        ImageError: It is not a folder.
    """
    if not Path(folder).is_dir():
        raise ImageError(str(folder), "not a folder", "Give a folder that holds images.")
    return list_files(folder, IMAGE_SUFFIXES)


def list_files(folder: str | os.PathLike[str], suffixes: tuple[str, ...]) -> list[Path]:
    """List the files in a folder and the folders below it whose names end so, sorted.

    Hidden files and folders and the `__MACOSX` folders of unpacked archives are left out.
    """
    files: list[Path] = []
    for directory, folders, names in os.walk(folder):
        # os.walk goes down into the folders that this list holds.
        folders[:] = [name for name in folders if name[0] != "." and name != "__MACOSX"]
        names = [name for name in names if name[0] != "." and name.lower().endswith(suffixes)]
        files += [Path(directory, name) for name in names]
    # By parts: the same order on every system, whatever its separator is.
    return sorted(files, key=lambda path: path.parts)


def _read(source: str | os.PathLike[str]) -> bytes:
    name = os.fspath(source)
    try:
        return Path(source).read_bytes()
    except FileNotFoundError as error:
        remedy = f"Check the path; relative paths start at {Path.cwd()}."
        if "://" in name:
            remedy = "Download it first and give its path or its bytes."
        raise ImageError(name, "no such file", remedy) from error
    except (IsADirectoryError, PermissionError) as error:
        # Windows answers "permission denied" when a folder is opened as a file.
        if Path(source).is_dir():
            remedy = "Give its files: vfm_runtime.find_images lists them."
            raise ImageError(name, "a folder, not an image", remedy) from error
        raise ImageError(name, "not readable", "Check its permissions.") from error
    except (OSError, ValueError) as error:
        short = name if len(name) <= 80 else f"{name[:77]}..."
        too_long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
        reason = "too long for a path" if too_long else f"not readable ({error})"
        remedy = "Give a path; the content of a file goes in as bytes."
        raise ImageError(short, reason, remedy) from error


def _decode_bytes(data: bytes, name: str, formats: tuple[str, ...] | None) -> Pixels:
    if not data:
        raise ImageError(name, "the file is empty", "Copy or download it again.")
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise ImageError(
            name,
            "not an image, damaged at its start, or in a format that Pillow does not read",
            "Open it in a viewer; if it is an image there, save it as PNG or JPEG.",
        ) from error
    except _BOMB as error:
        raise _refuse_bomb(name) from error
    except DAMAGE as error:
        raise _describe_damage(name, error) from error
    # Pillow shows a PNG cut within its last bytes; cut files are refused whatever is missing.
    if image.format == "PNG" and _PNG_END not in data:
        raise _describe_damage(name, "the end of the PNG is missing")
    return _convert_image(image, name)


def _convert_image(image: Image.Image, name: str) -> Pixels:
    if not image.width or not image.height:
        size = f"{image.width}x{image.height}"
        raise ImageError(name, f"it has no pixels ({size})", "Leave it out.")
    try:
        image.load()
        # After load: only then has Pillow turned a TIFF itself and dropped its tag.
        return _convert_to_rgb(turn_upright(image, read_orientation(image, name)), name)
    except ImageError:
        raise
    except _BOMB as error:
        raise _refuse_bomb(name) from error
    except DAMAGE as error:
        raise _describe_damage(name, error) from error


def read_orientation(image: Image.Image, name: str) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 where nothing says it."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DAMAGE as error:
        # The pixels are whole and every viewer shows such a photo; it may lie on its side, though.
        _log.warning("%s: its EXIF is damaged (%s), so it is taken as upright.", name, error)
        return 1
    return value if isinstance(value, int) else 1


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image as its EXIF orientation says that it is seen."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _refuse_bomb(name: str) -> ImageError:
    limit = Image.MAX_IMAGE_PIXELS
    return ImageError(
        name,
        f"more pixels than is safe to decode (Pillow's limit is {limit}, refused above its double)",
        "If you trust the file, make it smaller first.",
    )


def _describe_damage(name: str, error: Exception | str) -> ImageError:
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    reason = f"damaged or truncated ({first})"
    return ImageError(name, reason, "Copy or download it again.")


def _convert_to_rgb(image: Image.Image, name: str) -> Pixels:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _convert_gray16(image, name)
    if image.mode == "F":
        raise ImageError(
            name,
            "its pixels are floating-point numbers, whose range nothing says",
            "Scale them to 0..255 yourself and save them as 8-bit PNG.",
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    # A copy, so that the caller may write to it: torch and albumentations ask for that.
    return np.array(image.convert("RGB"))


def _convert_gray16(image: Image.Image, name: str) -> Pixels:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            name,
            f"its 32-bit values go from {low} to {high}; 16-bit grey goes from 0 to 65535",
            "Scale them to 0..255 yourself and save them as 8-bit PNG.",
        )
    # 257 = 65535 / 255: white stays white. Adding its half rounds.
    gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray[values == key] = 255
    return np.repeat(gray[:, :, None], 3, axis=2)


def _convert_array(array: NDArray[Any]) -> Pixels:
    name = f"array of shape {list(array.shape)} and type {array.dtype}"
    if array.dtype != np.uint8:
        remedy = _UINT8
        if array.dtype.kind == "f":
            remedy = f"{_UINT8} For values 0..1: (array * 255).round().astype('uint8')."
        raise ImageError(name, f"its type is {array.dtype}, not uint8", remedy)
    if array.ndim not in (2, 3):
        remedy = f"{_UINT8} A batch goes to Model.predict as a list." if array.ndim == 4 else _UINT8
        raise ImageError(name, f"it has {array.ndim} dimensions", remedy)
    if not array.size:
        raise ImageError(name, "it has no pixels", _UINT8)
    if array.ndim == 2:
        array = array[:, :, None]
    channels = array.shape[2]
    if channels not in (1, 3, 4):
        remedy = _UINT8
        if array.shape[0] in (1, 3, 4):
            remedy = f"{_UINT8} Channels come last: array.transpose(1, 2, 0)."
        raise ImageError(name, f"its last dimension is {channels}, not 1, 3 or 4", remedy)
    if channels == 4:
        return _convert_to_rgb(Image.fromarray(np.ascontiguousarray(array), "RGBA"), name)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3))).copy()
