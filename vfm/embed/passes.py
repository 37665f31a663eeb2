"""One pass over images: opened in threads ahead of the model, embedded by the batch."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.cpu_quota import count_usable_cores
from vfm_runtime.media.image import ImageError
from vfm_runtime.tasks.base import Arrays

from vfm.data.dataset import read_source
from vfm.embed.sources import SourceImage

_AHEAD = 3
"""Batches that wait in memory, at the model's small size."""
_MOST_THREADS = 8


class Prepared(NamedTuple):
    """An image ready for the model, or the reason why there is none."""

    image: SourceImage
    inputs: Arrays | None
    sha256: str
    reason: str


def embed_batches(
    predictor: Predictor, images: Iterable[SourceImage], batch_size: int
) -> Iterator[tuple[list[Prepared], NDArray[np.float32]]]:
    """Yield images by the batch, with the vectors [n, D] of those of them that could be read, in their order.

    Args:
        predictor: Model that embeds, with its preprocessing.
        images: Images of a source.
        batch_size: Number of images that go through the model at once.
    """
    prepared = _prepare_all(predictor, images, batch_size)
    while batch := list(islice(prepared, batch_size)):
        joined = [one.inputs for one in batch if one.inputs is not None]
        if not joined:
            yield batch, np.zeros((0, 0), np.float32)
            continue
        inputs = {name: np.concatenate([row[name] for row in joined]) for name in joined[0]}
        yield batch, predictor.embed_prepared(inputs)


def _prepare_all(
    predictor: Predictor, images: Iterable[SourceImage], batch_size: int
) -> Iterator[Prepared]:
    """Open images in threads ahead of the model, in order: decoding and resizing leave Python's lock."""
    with ThreadPoolExecutor(min(_MOST_THREADS, count_usable_cores())) as pool:
        pending: deque[Future[Prepared]] = deque()
        for image in images:
            pending.append(pool.submit(_prepare, predictor, image))
            if len(pending) >= _AHEAD * batch_size:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _prepare(predictor: Predictor, image: SourceImage) -> Prepared:
    try:
        source = read_source(image.record)
        data = Path(source).read_bytes() if isinstance(source, str) else source
        inputs = predictor.prepare(data)
    except ImageError as error:
        return Prepared(image, None, "", error.reason)
    except OSError as error:
        return Prepared(image, None, "", str(error))
    return Prepared(image, inputs, hashlib.sha256(bytes(data)).hexdigest(), "")
