"""Bit depth: images of more than 8 bits a value, whose lower bytes Pillow drops, brought to 8 bits by a value range."""

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ValueRange: TypeAlias = tuple[float, float]
"""Value that becomes black, and the greater one that becomes white."""

FULL_RANGE: ValueRange = (0, 65535)
"""Range of 16-bit values where nothing says another."""

_BITS_PER_SAMPLE, _PLANES, _SEPARATE = 258, 284, 2
_NATIVE = "L" if sys.byteorder == "little" else "B"
# A 16-bit image whose values need no more bits than these is nearly black if nothing says its range.
_MOST_NARROW_BITS = 14
_TABLE_SIZE = 2**16
_GRAY_ALPHA = "LA;16B"


def make_range(bit_depth: int) -> ValueRange:
    """Return the range of unsigned values of so many bits."""
    return 0, 2**bit_depth - 1


def is_narrow(high: float) -> bool:
    """Tell whether the largest value of an image of 16 or 32 bits is so small that it is nearly black."""
    return bool(0 < high < 2**_MOST_NARROW_BITS)


def scale_values(values: NDArray[Any], value_range: ValueRange) -> NDArray[np.uint8]:
    """Bring values from a range that holds all of them to 0..255, rounded to the nearest.

    Args:
        values: Whole numbers or floats, of any shape.
        value_range: Values that become 0 and 255.
    """
    low, high = value_range
    if values.dtype == np.uint16 and (low, high) == (int(low), int(high)):
        # A table takes no memory for numbers between; exact, as whole numbers of 64 bits are.
        steps = np.clip(np.arange(_TABLE_SIZE), low, high).astype(np.int64) - int(low)
        span = int(high) - int(low)
        table = ((510 * steps + span) // (2 * span)).astype(np.uint8)
        pixels: NDArray[np.uint8] = table[values]
        return pixels
    return np.floor((values.astype(np.float64) - low) * 255 / (high - low) + 0.5).astype(np.uint8)


def is_deep(image: Image.Image) -> bool:
    """Tell whether the colors of an image, opened and not yet loaded, have 16 bits, of which Pillow keeps 8."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    return any(";16" in mode for mode in _list_raw_modes(mend_planes(image)))


def mend_planes(image: Image.Image) -> Image.Image:
    """Mend the raw modes of an image that is not yet loaded, where it is a TIFF file of uncompressed planes.

    Pillow takes planes of 16 bits for planes of 8, and shows half of their rows; it refuses planes of no color.
    """
    tags: Any = getattr(image, "tag_v2", None)
    modes = _list_raw_modes(image)
    is_planar = len(image.getbands()) > 1 and all(len(mode) == 1 for mode in modes)
    if tags is not None and modes and is_planar:
        order = "L" if tags.prefix == b"II" else "B"
        suffix = f";16{order}" if tags.get(_BITS_PER_SAMPLE, (8,))[0] == 16 else ""
        image.tile = [tile for tile in image.tile if _read_raw_mode(tile) in "RGBAa"]  # type: ignore[attr-defined]
        _replace_raw_modes(image, lambda mode: mode.upper() + suffix)
    return image


def keep_premultiplied(image: Image.Image) -> Image.Image:
    """Return an image, not yet loaded, whose colors are not divided by its alpha when it is."""
    _replace_raw_modes(image, lambda mode: mode.replace("RGBa", "RGBA"))
    return image


def read_values(
    reopen: Callable[[], Image.Image], load: Callable[[Image.Image], Image.Image]
) -> NDArray[np.uint16] | None:
    """Read the colors of an image of which `is_deep` holds, in all their bits, [H, W, 3].

    Args:
        reopen: Opens the image anew, without loading it.
        load: Loads an image.

    Returns:
        The values; None of compressed planes, whose lower bytes Pillow does not give.
    """
    upper, lower = (keep_premultiplied(mend_planes(reopen())) for _ in range(2))
    tags: Any = getattr(lower, "tag_v2", {})
    if tags.get(_PLANES) == _SEPARATE and lower.tile[0].codec_name == "libtiff":  # type: ignore[attr-defined]
        return None
    is_gray_alpha = _GRAY_ALPHA in _list_raw_modes(lower)
    _replace_raw_modes(lower, _swap_bytes)
    low = np.asarray(load(lower))
    values = np.asarray(load(upper))[:, :, :3].astype(np.uint16)
    values <<= 8
    # Gray and alpha of 16 bits are read as four bytes, of which the second is the lower one of gray.
    values |= low[:, :, [1, 1, 1]] if is_gray_alpha else low[:, :, :3]
    return values


def _swap_bytes(mode: str) -> str:
    if mode == _GRAY_ALPHA:
        return "RGBA"
    order = mode[-1].replace("N", _NATIVE)
    return mode[:-1] + ("B" if order == "L" else "L")


def _list_raw_modes(image: Image.Image) -> list[str]:
    return [_read_raw_mode(tile) for tile in getattr(image, "tile", None) or ()]


def _read_raw_mode(tile: Any) -> str:
    """Return how the bytes of a part of a file are laid out; empty where its codec takes no such word."""
    mode = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return mode if isinstance(mode, str) else ""


def _replace_raw_modes(image: Any, change: Callable[[str], str]) -> None:
    tiles = []
    for tile in image.tile:
        mode, args = _read_raw_mode(tile), tile.args
        if mode:
            args = (change(mode), *args[1:]) if isinstance(args, tuple) else change(mode)
        tiles.append(tile._replace(args=args))
    image.tile = tiles
