"""State of what one model was taught, whether classes of images or of boxes: read, forget, and small pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm_runtime.media.image import Pixels
from vfm_runtime.teaching.state import TaughtState, check_label
from vfm_runtime.teaching.store import StateStore

_PICTURE_SIDE = 256


class Taught:
    """What one model was taught, in a folder or in memory; the bundle itself never changes."""

    def __init__(
        self, fingerprint: str, folder: str | Path | None = None, *, keep_pictures: bool = False
    ) -> None:
        """Open the state.

        Args:
            fingerprint: Fingerprint of the vectors that classes are taught by.
            folder: Folder of the state; None to keep it in memory.
            keep_pictures: Whether small pictures of examples are kept too; else vectors alone.

        Raises:
            DataError: The state of the folder is damaged, or of another model.
        """
        self.keeps_pictures = keep_pictures
        self.store = StateStore(None if folder is None else Path(folder), fingerprint)

    @property
    def state(self) -> TaughtState:
        """All that was taught, as it is now."""
        return self.store.read()

    def shrink_picture(self, pixels: Pixels) -> bytes:
        """Return a small JPEG of an image, or nothing where pictures are not kept."""
        if not self.keeps_pictures:
            return b""
        picture = Image.fromarray(pixels)
        picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        return file.getvalue()

    def forget(self, label: str) -> TaughtState:
        """Delete a class for good: its vectors, and pictures where they were kept.

        Raises:
            OptionError: No such class was taught.
            StateError: The state cannot be written; it stays as it was.
        """
        name = check_label(label)
        return self.store.change(lambda state: state.drop(name))


def center_vectors(
    vectors: NDArray[np.float32], center: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return vectors [N, D] less a center, of norm 1."""
    centered = np.asarray(vectors - center, np.float32)
    centered /= np.maximum(np.sqrt(np.einsum("nd,nd->n", centered, centered)), 1e-12)[:, None]
    return centered
