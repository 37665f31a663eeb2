"""Images: opened in one way for training and production, so that both see the same pixels."""

import errno
import io
import logging
import os
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vfm_runtime.errors import VfmError
from vfm_runtime.media import bit_depth
from vfm_runtime.media.bit_depth import FULL_RANGE, ValueRange

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

UNREAD_SUFFIXES = (
    *(
        ".heic",
        ".heif",
        ".hif",
        ".jxl",
        ".jpe",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".raf",
        ".orf",
        ".rw2",
    ),
    *(".psd", ".svg", ".eps", ".tga", ".exr", ".dcm"),
)
"""Names of image files that are not read end so, though someone may take them for data; compared in lower case."""

_log = logging.getLogger(__name__)

_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112
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
_STRIP = 2**20  # pixels
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


def open_image(
    source: ImageSource,
    *,
    formats: tuple[str, ...] | None = None,
    value_range: ValueRange | None = None,
) -> Pixels:
    """Open an image as uint8 RGB, [height, width, 3], upright and without alpha.

    The orientation of EXIF or XMP is applied, the first frame of an animation taken, alpha laid over white,
    values of more than 8 bits scaled to 8, and every other mode converted to RGB.

    Args:
        source: Path of a file, its bytes, a uint8 array or an image of Pillow; an array of more bits where their
            range is known.
        formats: Pillow's names of the formats that a file may have; None for all.
        value_range: Black and white of values of more than 8 bits; None for 0 and 65535, and a warning where that is
            hardly meant. Values of 8 bits are left alone.

    Raises:
        ImageError: The file is missing, damaged or no image, has values outside the range, or the array has another
            shape or type.
    """
    if isinstance(source, np.ndarray):
        return _convert_array(source, value_range)
    if isinstance(source, Image.Image):
        name = f"Pillow image {source.mode} {source.width}x{source.height}"
        return _convert_image(source, _Origin(name, value_range, source.format == "TIFF"))
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _decode_bytes(data, f"image of {len(data)} bytes", formats, value_range)
    if isinstance(source, str | os.PathLike):
        return _decode_bytes(_read(source), os.fspath(source), formats, value_range)
    raise ImageError(
        f"{type(source).__name__} object",
        "not an image",
        "Give a path, the bytes of a file, a uint8 array or an image of Pillow.",
    )


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


def _decode_bytes(
    data: bytes, name: str, formats: tuple[str, ...] | None, value_range: ValueRange | None
) -> Pixels:
    if not data:
        raise ImageError(name, "the file is empty", "Copy or download it again.")
    reopen = partial(_identify, data, name, formats)
    image = reopen()
    # Pillow shows a PNG cut within its last bytes; cut files are refused whatever is missing.
    if image.format == "PNG" and _PNG_END not in data:
        raise _describe_damage(name, "the end of the PNG is missing")
    return _convert_image(image, _Origin(name, value_range, image.format == "TIFF", reopen))


def _identify(data: bytes, name: str, formats: tuple[str, ...] | None) -> Image.Image:
    """Read the header of an image, and no pixels."""
    try:
        return Image.open(io.BytesIO(data), formats=formats)
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


class _Origin(NamedTuple):
    """Where the pixels of an image are from, and how they are to be read."""

    name: str
    value_range: ValueRange | None
    is_tiff: bool = False
    reopen: Callable[[], Image.Image] | None = None
    """Opens its file anew, where it is one."""


def _convert_image(image: Image.Image, origin: _Origin) -> Pixels:
    name, reopen = origin.name, origin.reopen
    if not image.width or not image.height:
        size = f"{image.width}x{image.height}"
        raise ImageError(name, f"it has no pixels ({size})", "Leave it out.")
    try:
        is_deep = bit_depth.is_deep(image)
        loaded = _load_upright(image, name)
        del image  # where it was turned, its memory is that of the pixels once more
        if is_deep and reopen is not None and (origin.value_range or _is_dark(loaded)):
            load = partial(_load_upright, name=name)
            values = bit_depth.read_values(reopen, load)
            if origin.value_range is not None:
                return _convert_deep(values, loaded, origin)
            _warn_of_range(256 * np.asarray(loaded).astype(int) if values is None else values, name)
        return _convert_to_rgb(loaded, origin)
    except ImageError:
        raise
    except _BOMB as error:
        raise _refuse_bomb(name) from error
    except DAMAGE as error:
        raise _describe_damage(name, error) from error


def _load_upright(image: Image.Image, name: str) -> Image.Image:
    bit_depth.mend_planes(image).load()
    # After load: only then has Pillow turned a TIFF itself and dropped its tag.
    return turn_upright(image, read_orientation(image, name))


def _is_dark(image: Image.Image) -> bool:
    extrema = image.getextrema()[:3]
    return bit_depth.is_narrow(256 * max(high for _, high in extrema))  # type: ignore[misc]


def read_orientation(image: Image.Image, name: str) -> int:
    """Return the orientation of an image by EXIF, or else by XMP, 1 to 8; 1 where nothing says it."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DAMAGE as error:
        # The pixels are whole and every viewer shows such a photo; it may lie on its side, though.
        _log.warning("%s: its EXIF is damaged (%s), so it is taken as upright.", name, error)
        return 1
    return value if isinstance(value, int) else 1


def read_size(image: Image.Image, name: str) -> tuple[int, int]:
    """Return height and width of an image as it is seen upright, before it is loaded."""
    tags: Any = getattr(image, "tag_v2", {})
    # Pillow has turned the size of a TIFF file already, but for older versions of it.
    width, height = tags.get(_WIDTH, image.width), tags.get(_HEIGHT, image.height)
    return (width, height) if read_orientation(image, name) in SIDEWAYS else (height, width)


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image as its EXIF orientation says that it is seen."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _refuse_bomb(name: str) -> ImageError:
    limit = Image.MAX_IMAGE_PIXELS
    return ImageError(
        name,
        f"more pixels than is safe to decode (Pillow's limit is {limit}, refused above its double)",
        "If you trust the file, make it smaller first, or allow its number of pixels: --data.max_pixels in training, "
        "PIL.Image.MAX_IMAGE_PIXELS in Python.",
    )


def _describe_damage(name: str, error: Exception | str) -> ImageError:
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    reason = f"damaged or truncated ({first})"
    return ImageError(name, reason, "Copy or download it again.")


def _convert_to_rgb(image: Image.Image, origin: _Origin) -> Pixels:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _convert_gray(image, origin)
    if image.has_transparency_data:
        image = _remove_alpha(image.convert("RGBA"), origin)
    # An array of its own, so that the caller may write to it: torch and albumentations ask for that. By strips, since
    # Pillow makes two or three copies on the way of what it converts and hands over.
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(
            strip if strip.mode == "RGB" else strip.convert("RGB")
        )
    return pixels


def _remove_alpha(image: Image.Image, origin: _Origin) -> Image.Image:
    """Lay an RGBA image over white; of a TIFF file only where its fourth band is a mask.

    Programs mark the fourth band of every TIFF as alpha. A mask is 0 or 255 but for its edges; infrared is not.
    """
    counts = image.getchannel("A").histogram()
    fraction = sum(counts[1:255]) / sum(counts)
    is_mask = fraction <= 0.5
    if not is_mask:
        action = "left out" if origin.is_tiff else "laid over white as alpha"
        _warn_once(
            f"alpha {action}",
            f"{origin.name}: its fourth band is marked as alpha, and {fraction:.0%} of it are neither 0 nor 255; it is "
            f"{action}. If that is wrong, save the image with three bands. Other files like it are not named.",
        )
    if is_mask or not origin.is_tiff:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image)
    if origin.reopen is None:
        return image
    # Pillow has divided the colors of some files by what is no alpha.
    return _load_upright(bit_depth.keep_premultiplied(origin.reopen()), origin.name)


def _convert_gray(image: Image.Image, origin: _Origin) -> Pixels:
    """Convert gray of 16 or 32 bits, or of floats."""
    if image.mode == "F" and origin.value_range is None:
        raise ImageError(
            origin.name,
            "its pixels are floating-point numbers, whose range nothing says",
            "Scale them to 0..255 yourself and save them as 8-bit PNG.",
        )
    values = np.asarray(image)
    if origin.value_range is None:
        _warn_of_range(values, origin.name)
    gray = _scale(values, origin.value_range or FULL_RANGE, origin.name)
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray[values == key] = 255
    return np.repeat(gray[:, :, None], 3, axis=2)


def _convert_deep(
    values: NDArray[np.uint16] | None, loaded: Image.Image, origin: _Origin
) -> Pixels:
    """Convert colors of 16 bits by their range, [H, W, 3], of an image whose upper bytes were loaded."""
    if values is None:
        raise ImageError(
            origin.name,
            "its 16-bit colors lie in compressed planes, of which only the upper 8 bits can be read",
            "Save it with the colors of a pixel side by side (GDAL: INTERLEAVE=PIXEL), or without compression.",
        )
    pixels = _scale(values, origin.value_range or FULL_RANGE, origin.name)
    key = loaded.info.get("transparency")
    if isinstance(key, tuple):
        pixels[(values == np.array(key)).all(axis=2)] = 255
    if loaded.mode == "RGBA":
        image = Image.fromarray(pixels).convert("RGBA")
        image.putalpha(loaded.getchannel("A"))
        # What is no alpha, Pillow has not divided these colors by.
        pixels = _convert_to_rgb(image, origin._replace(reopen=None))
    return pixels


def _scale(values: NDArray[Any], value_range: ValueRange, name: str) -> Pixels:
    low, high = values.min(), values.max()
    # Written so that NaN lies outside too.
    if not (value_range[0] <= low and high <= value_range[1]):
        raise ImageError(
            name,
            f"its values go from {low:g} to {high:g}, outside the range {value_range[0]:g} to {value_range[1]:g}",
            "Say how many bits the values have in training (--data.bit_depth), and give a trained model such images "
            "alone; or scale them to 0..255 yourself and save them as 8-bit PNG.",
        )
    return bit_depth.scale_values(values, value_range)


def _warn_of_range(values: NDArray[Any], name: str) -> None:
    """Warn of values of more than 8 bits that use so little of the range taken for them that the image is black."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or not bit_depth.is_narrow(high):
        return
    bits = high.bit_length()
    _warn_once(
        f"range {bits}",
        f"{name}: its values go from {low} to {high}; taken as parts of 0 to 65535 they are nearly black ({low // 257} "
        f"to {high // 257} of 255). If they have {bits} bits, train with --data.bit_depth {bits}: the bundle then "
        "reads them so too. Other files like it are not named.",
    )


_warned: set[str] = set()


def _warn_once(kind: str, text: str) -> None:
    """Log a warning about the first file of its kind that this process opens."""
    if kind not in _warned:
        _warned.add(kind)
        _log.warning("%s", text)


def _convert_array(array: NDArray[Any], value_range: ValueRange | None) -> Pixels:
    name = f"array of shape {list(array.shape)} and type {array.dtype}"
    if (
        value_range is not None
        and array.size
        and array.dtype != np.uint8
        and array.dtype.kind in "iuf"
    ):
        array = _scale(array, value_range, name)
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
        return _convert_to_rgb(
            Image.fromarray(np.ascontiguousarray(array), "RGBA"), _Origin(name, None)
        )
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3))).copy()
