"""Pictures of rows for contact sheets; a gray field stands for a file that is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from vfm_runtime.cpu_quota import count_usable_cores
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.media.image import ImageError, Pixels

from vfm.embed.sources import open_stored
from vfm.report.point_map import make_thumbnail

_GRAY = np.full((64, 64, 3), 200, np.uint8)
_TICK = 500
"""Pictures after which it is said how many are read."""


def open_picture(path: str, value_range: ValueRange | None) -> Pixels:
    """Return the image of a row as the store's model sees it, or a gray field where it cannot be read.

    Args:
        path: Path of the row, which the caption of the picture names.
        value_range: Black and white of images of more than 8 bits.
    """
    try:
        return open_stored(path, value_range)
    except ImageError:
        return _GRAY


def iterate_thumbnails(
    paths: Sequence[str], value_range: ValueRange | None, progress: Callable[[str], None]
) -> Iterator[Image.Image]:
    """Yield the picture of each row for a map, read in threads."""
    with ThreadPoolExecutor(count_usable_cores()) as pool:
        pictures = pool.map(lambda path: make_thumbnail(open_picture(path, value_range)), paths)
        for number, picture in enumerate(pictures, 1):
            yield picture
            if number % _TICK == 0:
                progress(f"{number:,} of {len(paths):,} pictures")
