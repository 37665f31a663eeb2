"""Update of a store: what it lacks of some images is embedded and written in chunks, what is gone is dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfm.embed.passes import Prepared
from vfm.embed.sources import FRAME_MARK, SourceImage
from vfm.embed.store import EmbeddingStore

EmbedBatches = Callable[
    [Sequence[SourceImage]], Iterator[tuple[list[Prepared], NDArray[np.float32]]]
]
"""Yields rows by the batch, with the vectors [n, D] of those that could be read."""

_CHUNK = 16_384
"""Images of one write. Each write is a file until the store is compacted, which copies all rows."""
_SECONDS = 20.0
"""Time after which fewer are written: what a stopped run loses at most."""
_TICK = 2.0
"""Seconds between two lines of progress."""


@dataclass
class EmbedReport:
    """What a run did."""

    num_images: int
    """Images of the source."""
    num_embedded: int = 0
    """Images that were embedded now; the others were there."""
    num_dropped: int = 0
    """Rows whose images are gone."""
    seconds: float = 0.0
    """Time of reading and embedding."""
    unreadable: dict[str, str] | None = None
    """Reason by path."""


def update_store(
    store: EmbeddingStore,
    embed: EmbedBatches,
    images: Sequence[SourceImage],
    source: str,
    *,
    drop_gone: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> EmbedReport:
    """Embed what a store lacks of some images, write it in chunks, and compact.

    Args:
        store: Store, which this process alone writes to.
        embed: Model of the store: `embed_batches`, or what does the same elsewhere.
        images: All images of the source.
        source: Name of the source, by which rows of gone images are known.
        drop_gone: Whether these are deleted.
        tell: Told every few seconds how many images are through.
    """
    stamps = store.read_stamps()
    waiting = [image for image in images if stamps.get(image.path, ("", ""))[1] != image.stamp]
    report = EmbedReport(len(images), unreadable={})
    assert report.unreadable is not None
    start = written = time.perf_counter()
    if waiting:
        store.add_columns(waiting)
    progress = _Progress(len(waiting), tell)
    rows: list[Prepared] = []
    vectors: list[np.ndarray] = []
    current: set[str] = set()
    for batch, values in embed(waiting):
        report.unreadable |= {one.image.path: one.reason for one in batch if one.reason}
        ready = [one for one in batch if not one.reason]
        current |= {one.image.path for one in ready if FRAME_MARK in one.image.path}
        vectors += [values] if ready else []
        rows += ready
        # A video counts once.
        report.num_embedded += len(ready) - sum(one.num_pooled for one in ready)
        progress.show(report.num_embedded + len(report.unreadable))
        if len(rows) >= _CHUNK or (rows and time.perf_counter() - written > _SECONDS):
            _write(store, vectors, rows, source)
            rows, vectors, written = [], [], time.perf_counter()
    if rows:
        _write(store, vectors, rows, source)
    report.seconds = time.perf_counter() - start
    gone = _find_gone(stamps, images, source if drop_gone else None, report.unreadable)
    # Nor is a video answered by frames that it had.
    videos = {image.path for image in waiting if image.num_frames}
    frames = [path for path in stamps if FRAME_MARK in path and path not in current]
    gone += [path for path in frames if path.partition(FRAME_MARK)[0] in videos]
    store.delete(gone)
    report.num_dropped = len(gone)
    if report.num_embedded or gone:
        store.compact()
    return report


def _find_gone(
    stamps: Mapping[str, tuple[str, str]],
    images: Sequence[SourceImage],
    source: str | None,
    unreadable: Collection[str],
) -> list[str]:
    """List the paths of rows to delete: of files that cannot be read any more, and of files that their source lost."""
    if source is None:
        return [path for path in stamps if path.partition(FRAME_MARK)[0] in unreadable]
    listed = {image.path for image in images} - set(unreadable)
    files = ((path, path.partition(FRAME_MARK)[0], origin) for path, (origin, _) in stamps.items())
    return [
        path
        for path, file, origin in files
        if file in unreadable or (origin == source and file not in listed)
    ]


def _write(
    store: EmbeddingStore, vectors: Sequence[np.ndarray], rows: Sequence[Prepared], source: str
) -> None:
    names = dict.fromkeys(name for row in rows for name in row.image.columns)
    columns = {name: [row.image.columns.get(name) for row in rows] for name in names}
    store.write(
        np.concatenate(vectors),
        {
            "path": [row.image.path for row in rows],
            "sha256": [row.sha256 for row in rows],
            "vfm_source": [source] * len(rows),
            "vfm_stamp": [row.image.stamp for row in rows],
            **columns,
        },
    )


class _Progress:
    """Says every few seconds how many images are through, and how many a second."""

    def __init__(self, total: int, tell: Callable[[str], None]) -> None:
        self._total = total
        self._tell = tell
        self._start = self._last = time.monotonic()

    def show(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last < _TICK:
            return
        self._last = now
        rate = done / (now - self._start)
        left = (self._total - done) / max(rate, 1e-9)
        self._tell(f"{done:,} of {self._total:,} images, {rate:.1f} images/s, {left:.0f} s left")
