"""Scan of images: each file opened once, for its checksum, header, thumbnails and values beside its content."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from vfm_runtime.cpu_quota import count_usable_cores
from vfm_runtime.media.image import ImageError, open_image

from vfm.data.file_metadata import Metadata
from vfm.data.records import Record, read_source
from vfm.data.tar import ShardError

SIDE = 64
"""Side of a thumbnail in pixels."""
COLOR_SIDE = 16
"""Side of a thumbnail in colors."""
ReadValues = Callable[[bytes | None, NDArray[np.uint8]], Metadata]
"""Gives values of an image beside its content, from the bytes of its file, or None, and its pixels."""
_AHEAD = 64
_TICK = 5000


class ScannedFile(NamedTuple):
    """What one image is, beside what it shows."""

    sha256: str
    """Checksum of the file, or of the array; empty where it cannot be read."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the upright image, in pixels."""
    num_bytes: int = 0
    format: str = ""
    """Pillow's name of the format; `array` of an image that is no file."""
    mode: str = ""
    """Pillow's name of the pixels, such as RGB, L, CMYK, I;16."""
    reason: str = ""
    """Why it cannot be read."""
    values: Metadata | None = None
    """Values beside its content; None where they were not asked for."""


@dataclass(frozen=True)
class Scan:
    """N images, in the order of their records."""

    files: list[ScannedFile]
    gray: NDArray[np.uint8]
    """Thumbnails, uint8 [N, 64, 64], squeezed to squares; zeros where a file cannot be read."""
    colors: NDArray[np.uint8]
    """Smaller ones in color, uint8 [N, 16, 16, 3]."""

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which images could be read, bool [N]."""
        return np.array([not file.reason for file in self.files], bool)


def scan_images(
    records: Sequence[Record],
    *,
    with_values: Collection[int] = (),
    read_values: ReadValues | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Scan:
    """Open every image once, in threads; those that cannot be read are kept with the reason.

    Args:
        records: Images to open, each a file, a part of a shard or an array.
        with_values: Indices of images whose values beside their content are wanted too.
        read_values: Reads these.
        progress: Told how many are done.
    """
    gray = np.zeros((len(records), SIDE, SIDE), np.uint8)
    colors = np.zeros((len(records), COLOR_SIDE, COLOR_SIDE, 3), np.uint8)
    files: list[ScannedFile] = []
    wanted = set(with_values)

    def open_one(index: int) -> ScannedFile:
        file, pixels = _open_record(records[index], read_values if index in wanted else None)
        if pixels is not None:
            small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            gray[index] = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
            colors[index] = cv2.resize(
                small, (COLOR_SIDE, COLOR_SIDE), interpolation=cv2.INTER_AREA
            )
        return file

    with ThreadPoolExecutor(count_usable_cores()) as pool:
        for file in _run_ahead(pool, open_one, len(records)):
            files.append(file)
            if len(files) % _TICK == 0:
                progress(f"{len(files):,} of {len(records):,} images opened")
    return Scan(files, gray, colors)


def shrink_image(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return an image whose longer side has at most `side` pixels."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _run_ahead(
    pool: ThreadPoolExecutor, work: Callable[[int], ScannedFile], count: int
) -> Iterator[ScannedFile]:
    """Yield results in order with few of them waiting: `map` would hold a future for every image."""
    pending: deque[Future[ScannedFile]] = deque()
    for index in range(count):
        pending.append(pool.submit(work, index))
        if len(pending) >= _AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _open_record(
    record: Record, read_values: ReadValues | None
) -> tuple[ScannedFile, NDArray[np.uint8] | None]:
    try:
        source = read_source(record)
        content = Path(source).read_bytes() if isinstance(source, str) else source
        checksum = hashlib.sha256(bytes(content)).hexdigest()
        pixels = open_image(content)
        data = content if isinstance(content, bytes) else None
        values = read_values(data, pixels) if read_values is not None else None
    except ImageError as error:
        return ScannedFile("", reason=error.reason), None
    except (OSError, ShardError) as error:
        return ScannedFile("", reason=getattr(error, "strerror", None) or str(error)), None
    size = pixels.shape[0], pixels.shape[1]
    if data is None:
        return ScannedFile(checksum, size, pixels.size, "array", "RGB", values=values), pixels
    with Image.open(io.BytesIO(data)) as image:
        kind = (image.format or "", image.mode)
    return ScannedFile(checksum, size, len(data), *kind, values=values), pixels
