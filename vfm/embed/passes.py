"""One pass over images and videos: opened in threads ahead of the model, embedded by the batch."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.cpu_quota import count_usable_cores
from vfm_runtime.media.image import ImageError, ImageSource
from vfm_runtime.media.video import read_video
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.embedding import EmbeddingSpec
from vfm_runtime.zero_shot import TextModel

from vfm.data.records import read_source
from vfm.data.tar import ShardError
from vfm.embed.sources import FRAME_MARK, SourceImage

_AHEAD = 3
"""Batches that wait in memory, at the model's small size."""
_MOST_THREADS = 8
_TINY = 1e-12


class ImageTower(Protocol):
    """Model that opens images and embeds batches of them."""

    embedding: EmbeddingSpec | None
    """Part of the features that the vectors are made of."""

    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image and bring it to the model's size, as rows of one."""

    def embed_prepared(self, inputs: Arrays) -> NDArray[np.float32]:
        """Return the embeddings, [N, D], of what `prepare` has made of several images, joined."""


class ImageTextModel(ImageTower, TextModel, Protocol):
    """An image tower and a text tower, whose vectors, of norm 1, can be compared by cosine."""


class Prepared(NamedTuple):
    """A row to be: an image ready for the model, or the reason why there is none."""

    image: SourceImage
    inputs: Arrays | None
    """Taken away when the model has had it."""
    sha256: str
    reason: str = ""
    num_pooled: int = 0
    """Rows just before this one, the frames of a video, whose mean is its vector."""


def embed_batches(
    predictor: ImageTower, images: Iterable[SourceImage], batch_size: int
) -> Iterator[tuple[list[Prepared], NDArray[np.float32]]]:
    """Yield rows by the batch, with the vectors [n, D] of those of them that could be read, in their order.

    An image is a row; a video is a row for each frame and a last one, the mean of these. No batch divides a video.

    Args:
        predictor: Model that embeds, with its preprocessing.
        images: Images of a source.
        batch_size: Number of images that go through the model at once.
    """
    batch: list[Prepared] = []
    for rows in _prepare_all(predictor, images, batch_size):
        batch += rows
        if len(batch) >= batch_size:
            yield _embed_rows(predictor, batch, batch_size)
            batch = []
    if batch:
        yield _embed_rows(predictor, batch, batch_size)


def _embed_rows(
    predictor: ImageTower, rows: Sequence[Prepared], batch_size: int
) -> tuple[list[Prepared], NDArray[np.float32]]:
    """Return the rows, without what the model was given, which would wait with them until they are written."""
    inputs = [row.inputs for row in rows if row.inputs is not None]
    done = [row._replace(inputs=None) for row in rows]
    if not inputs:
        return done, np.zeros((0, 0), np.float32)
    parts = []
    for start in range(0, len(inputs), batch_size):
        part = inputs[start : start + batch_size]
        parts.append(
            predictor.embed_prepared(
                {name: np.concatenate([one[name] for one in part]) for name in part[0]}
            )
        )
    computed = iter(np.concatenate(parts))
    normalizes = predictor.embedding is not None and predictor.embedding.normalize
    vectors: list[NDArray[np.float32]] = []
    for row in rows:
        if row.inputs is not None:
            vectors.append(next(computed))
        elif row.num_pooled:
            mean = np.mean(vectors[-row.num_pooled :], axis=0)
            vectors.append(mean / max(float(np.linalg.norm(mean)), _TINY) if normalizes else mean)
    return done, np.stack(vectors)


def _prepare_all(
    predictor: ImageTower, images: Iterable[SourceImage], batch_size: int
) -> Iterator[list[Prepared]]:
    """Open images in threads ahead of the model, in order: decoding and resizing leave Python's lock."""
    with ThreadPoolExecutor(min(_MOST_THREADS, count_usable_cores())) as pool:
        pending: deque[Future[list[Prepared]]] = deque()
        for image in images:
            pending.append(pool.submit(_prepare, predictor, image))
            if len(pending) >= _AHEAD * batch_size:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _prepare(predictor: ImageTower, image: SourceImage) -> list[Prepared]:
    try:
        source = read_source(image.record)
        data = Path(source).read_bytes() if isinstance(source, str) else source
        checksum = hashlib.sha256(bytes(data)).hexdigest()
        if image.num_frames:
            return _prepare_video(predictor, image, checksum)
        return [Prepared(image, predictor.prepare(data), checksum)]
    except ImageError as error:
        return [Prepared(image, None, "", error.reason)]
    except (OSError, ShardError) as error:
        return [Prepared(image, None, "", str(error))]


def _prepare_video(predictor: ImageTower, video: SourceImage, checksum: str) -> list[Prepared]:
    frames = read_video(video.path, video.num_frames, num_threads=1).frames
    rows = []
    for frame in frames:
        path, columns = (
            f"{video.path}{FRAME_MARK}{frame.time:.3f}",
            {**video.columns, "time": frame.time},
        )
        image = SourceImage(path, columns, part=video.record)
        rows.append(Prepared(image, predictor.prepare(frame.pixels), checksum))
    return [*rows, Prepared(video, None, checksum, num_pooled=len(rows))]
