"""Pictures of rows for contact sheets; a gray field stands for a file that is gone."""

from __future__ import annotations

import numpy as np
from vfm_runtime.media.image import ImageError, Pixels

from vfm.embed.sources import open_stored

_GRAY = np.full((64, 64, 3), 200, np.uint8)


def open_picture(path: str) -> Pixels:
    """Return the image of a row, or a gray field where it cannot be read, which the caption names."""
    try:
        return open_stored(path)
    except ImageError:
        return _GRAY
