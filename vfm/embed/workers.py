"""Embed worker: the model in a process of its own, for the engines that run several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import VfmError

from vfm.embed.models import open_embedder
from vfm.embed.passes import Prepared, embed_batches
from vfm.embed.sources import SourceImage

ERRAND = 8
"""Batches that a worker is sent at once, and does again after it was killed."""

EmbeddedBatch = tuple[list[Prepared], NDArray[np.float32]]
"""Rows, and the vectors [n, D] of those that could be read."""

REMEDY = (
    "What is written stays: run the same command again, with fewer --workers or a smaller --batch-size where memory "
    "ran out, or with --engine local."
)


class EngineError(VfmError, RuntimeError):
    """The workers of an engine cannot do their work; the message says what to do."""


class EmbedWorker:
    """One process with the model.

    Args:
        opening: Arguments of `open_embedder`, by which the model is opened.
        fingerprint: Fingerprint of the model in the process that started this one.

    Raises:
        EngineError: The model has another one.
    """

    def __init__(self, opening: Mapping[str, Any], fingerprint: str) -> None:
        self._predictor, spec = open_embedder(**opening)
        if spec.fingerprint != fingerprint:
            raise EngineError(
                f"The worker has other weights of {opening['model']} (fingerprint {spec.fingerprint[:12]}) than the "
                f"process that started it ({fingerprint[:12]}). Copy the same file to every machine."
            )

    def embed(self, images: Sequence[SourceImage], batch_size: int) -> list[EmbeddedBatch]:
        """Embed some images, as `embed_batches` does."""
        return list(embed_batches(self._predictor, images, batch_size))
