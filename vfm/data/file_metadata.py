"""Metadata of a file, read before any pixel is decoded: size, format, compression, length, name."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError
from vfm_runtime.media.demux import VideoFile, import_av, open_container
from vfm_runtime.media.image import ImageError
from vfm_runtime.media.video import LIMITS, is_video

Metadata = dict[str, float | str | None]
"""A number, a category, or None where the file has no such thing, by the name of the feature."""

FEATURES: dict[str, tuple[str, ...]] = {
    "size": ("width", "height", "aspect_ratio"),
    "format": ("file_format", "colour_mode", "exif", "icc_profile", "progressive"),
    "compression": (
        *("jpeg_quality", "chroma_subsampling", "bytes_per_pixel"),
        *("bit_rate", "codec", "pixel_format"),
    ),
    "time": ("duration", "fps", "num_frames", "sound"),
    "name": ("name_length", "name_digits", "name_characters", "name_suffix"),
}
"""Names of the features, by what they belong to."""
# A model that is given pixels never sees these.
UNSEEN = ("name",)

_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError)


def read_metadata(path: Path) -> Metadata:
    """Read what the header of an image or a video tells, and its file's name.

    Returns:
        Values by the names of `FEATURES`; those that do not apply are left out.

    Raises:
        ImageError: The file is missing, or its header cannot be read.
        ImportError: It is a video, and PyAV is missing.
    """
    if not path.is_file():
        raise ImageError(str(path), "no such file", "Take it out of the data, or mend its path.")
    if is_video(path):
        with open_container(import_av(), VideoFile.resolve(path, LIMITS)) as (container, stream):
            values = _read_stream(container, stream, path.stat().st_size)
    else:
        values = read_header(path, path.stat().st_size)
    stem = path.stem
    return values | {
        "name_length": float(len(stem)),
        "name_digits": sum(letter.isdigit() for letter in stem) / max(len(stem), 1),
        "name_characters": _describe_characters(stem),
        "name_suffix": path.suffix,
    }


def estimate_jpeg_quality(tables: dict[int, list[int]]) -> int:
    """The quality, 1 to 100, at which libjpeg's quantisation tables are nearest to these.

    Exact for files of libjpeg and its kin (Pillow, OpenCV, most web services); cameras and Photoshop have tables of
    their own, for which it is the nearest.

    Args:
        tables: 64 steps for each table, in the order of rows; the first is that of the brightness.
    """
    reference = _read_libjpeg_tables()
    steps = np.array([tables[key] for key in sorted(tables)][:2], dtype=np.float64)
    # On a log scale: a step of 2 in place of 1 changes more than 80 in place of 79.
    distance = np.abs(np.log(reference[:, : len(steps)] / np.maximum(steps, 1))).sum(axis=(1, 2))
    return 1 + int(np.argmin(distance))


@functools.cache
def _read_libjpeg_tables() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Both tables of every quality, [100, 2, 64], read from files that libjpeg writes."""
    tables = []
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            steps = getattr(image, "quantization", {})
            tables.append([steps[0], steps[1]])
    return np.array(tables, dtype=np.float64)


def read_header(file: Path | bytes, num_bytes: int) -> Metadata:
    """Read what the header of an image tells, of its path or its content; `num_bytes` is the size of the file.

    Raises:
        ImageError: The header cannot be read.
    """
    name = str(file) if isinstance(file, Path) else f"image of {num_bytes} bytes"
    try:
        with Image.open(file if isinstance(file, Path) else io.BytesIO(file)) as image:
            width, height = image.size
            values: Metadata = {
                "file_format": image.format,
                "colour_mode": image.mode,
                "exif": float("exif" in image.info),
                "icc_profile": float("icc_profile" in image.info),
                "progressive": float(bool(image.info.get("progressive"))),
            }
            if isinstance(image, JpegImagePlugin.JpegImageFile) and image.quantization:
                values["jpeg_quality"] = float(estimate_jpeg_quality(image.quantization))
                sampling = JpegImagePlugin.get_sampling(image)
                values["chroma_subsampling"] = _SUBSAMPLING.get(sampling, "other")
    except (UnidentifiedImageError, Image.DecompressionBombError, *_DAMAGE) as error:
        raise ImageError(name, "its header cannot be read", "Copy it again.") from error
    if not width or not height:
        raise ImageError(name, f"it has no pixels ({width}x{height})", "Leave it out.")
    values["bytes_per_pixel"] = num_bytes / (width * height)
    return values | _measure_size(width, height)


def _read_stream(container: Any, stream: Any, num_bytes: int) -> Metadata:
    width, height = stream.codec_context.width, stream.codec_context.height
    seconds = container.duration / 1e6 if container.duration else None  # it is in microseconds
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    rate = float(stream.average_rate) if stream.average_rate else None
    # Not every container counts its frames.
    frames = float(stream.frames) or (seconds * rate if seconds and rate else None)
    values: Metadata = {
        "file_format": str(container.format.name).partition(",")[0],
        "codec": str(stream.codec_context.name),
        "pixel_format": str(stream.codec_context.pix_fmt),
        "sound": float(bool(container.streams.audio)),
        "fps": rate,
        "duration": seconds,
        "num_frames": frames,
        "bit_rate": 8 * num_bytes / seconds if seconds else None,
    }
    if frames and width and height:
        values["bytes_per_pixel"] = num_bytes / (width * height * frames)
    return values | (_measure_size(width, height) if width and height else {})


def _measure_size(width: int, height: int) -> Metadata:
    return {"width": float(width), "height": float(height), "aspect_ratio": width / height}


def _describe_characters(stem: str) -> str:
    """The kinds of characters in a name, in words, such as `digits and _`."""
    kinds = {
        "digits": any(c.isdigit() for c in stem),
        "lower": any(c.islower() for c in stem),
        "upper": any(c.isupper() for c in stem),
    }
    named = [kind for kind, occurs in kinds.items() if occurs]
    marks = sorted({c for c in stem if not c.isalnum()})
    return " ".join([*named, *("space" if mark.isspace() else mark for mark in marks)])
