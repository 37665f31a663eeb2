"""`vfm embed`: images and videos into a store of vectors, which goes on where it was stopped."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.media.demux import import_av

from vfm.embed.models import open_embedder
from vfm.embed.passes import Prepared, embed_batches
from vfm.embed.sources import FRAME_MARK, SourceImage, list_source_images
from vfm.embed.store import EmbeddingStore, StoreModel, check_export, lock_store
from vfm.models.heads.embedding import EmbeddingSource

UNREADABLE_FILE = "unreadable.csv"
"""Images that could not be read, in the folder of a store."""

_CHUNK = 16_384
"""Images of one write. Each write is a file until the store is compacted, which copies all rows."""
_SECONDS = 20.0
"""Time after which fewer are written: what a stopped run loses at most."""
_SHOWN = 5
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


def embed(
    source: str,
    *,
    to: str,
    model: str,
    embedding: EmbeddingSource | None = None,
    normalize: bool = True,
    base: Path | None = None,
    path_column: str = "path",
    num_frames: int = 8,
    drop_gone: bool = False,
    half: bool = False,
    export: Path | None = None,
    device: str = "auto",
    batch_size: int = 32,
    trust: Sequence[str] = (),
) -> None:
    """Embed the images of a folder, table or shards into a store; images that it has already are not embedded again.

    Args:
        source: Folder of images and videos, a table of images (.csv, .tsv, .parquet), or tar files of them, such as
            'train-{000..127}.tar'.
        to: Folder of the store (LanceDB), made if missing, or the address of one in an object store.
        model: Name of a backbone, checkpoint, folder of a bundle that embeds, or open_clip:NAME/WEIGHTS, so that words
            can be searched for.
        embedding: What the vector is made of: pooled (the default), class_token, patches or layers.
        normalize: Divide each vector by its L2 norm.
        base: File of the backbone's weights, for an adapter, or for a name in place of timm's.
        path_column: Column of a table with the paths of the images.
        num_frames: Frames of each video of a folder, spread evenly, that are embedded beside their mean; 0 for none.
        drop_gone: Delete rows of this source whose images are gone.
        half: Keep vectors in 16 bits, in a new store.
        export: Also write all rows to a .parquet or .npz file.
        device: cpu, cuda, or auto for CUDA where there is one.
        batch_size: Images that go through the model at once.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        StoreError: The store holds vectors of another model, or another process writes to it.
        DataError: The source holds no images.
    """
    if batch_size < 1 or num_frames < 0:
        raise OptionError(
            f"--batch_size is {batch_size} and --num_frames {num_frames}. Give at least 1, and 0."
        )
    if export is not None:
        check_export(export)
    images = list_source_images(source, path_column, num_frames=num_frames)
    if any(image.num_frames for image in images):
        import_av()
    predictor, spec = open_embedder(
        model, source=embedding, normalize=normalize, base=base, device=device, trust=trust
    )
    with lock_store(to):
        store = EmbeddingStore.find(to)
        if store is None:
            (width,) = predictor.embed(np.zeros((8, 8, 3), np.uint8)).shape
            name = str(Path(model).absolute()) if Path(model).exists() else model
            described = StoreModel(
                fingerprint=spec.fingerprint,
                model=name,
                base=None if base is None else str(base.absolute()),
                source=spec.source,
                normalize=spec.normalize,
                width=width,
                value_range=predictor.value_range,
            )
            store = EmbeddingStore.create(to, described, images, half=half)
        store.require_model(spec, model)
        report = update_store(
            store,
            predictor,
            images,
            source if ".tar" in source else str(Path(source).absolute()),
            drop_gone,
            batch_size=batch_size,
        )
        unreadable = report.unreadable or {}
        _list_unreadable(to, unreadable)
        if export is not None:
            store.export(export)
            print(f"Vectors: {export}")
    rate = report.num_embedded / max(report.seconds, 1e-9)
    print(
        f"{report.num_embedded:,} of {report.num_images:,} images embedded now ({rate:.1f} images/s), "
        f"{report.num_dropped:,} rows dropped; {to} holds {store.num_rows:,} vectors of {store.model.width} numbers."
    )
    for path, reason in list(unreadable.items())[:_SHOWN]:
        print(f"unreadable: {path}: {reason}", file=sys.stderr)
    if unreadable:
        print(
            f"{len(unreadable):,} images could not be read and have no vector: see {UNREADABLE_FILE} in the store.",
            file=sys.stderr,
        )
    if len(unreadable) == len(images):
        raise DataError(f"None of the {len(images):,} images of {source} could be read.")


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


def _list_unreadable(to: str, unreadable: Mapping[str, str]) -> None:
    """Write the files that could not be read into the folder of a store, in place of those of the last run."""
    if "://" in to:
        return
    file = Path(to, UNREADABLE_FILE)
    file.unlink(missing_ok=True)
    if unreadable:
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("path", "reason"), *unreadable.items()])


def update_store(
    store: EmbeddingStore,
    predictor: Predictor,
    images: Sequence[SourceImage],
    source: str,
    drop_gone: bool = False,
    *,
    batch_size: int = 32,
) -> EmbedReport:
    """Embed what a store lacks of some images, write it in chunks, and compact.

    Args:
        store: Store, which this process alone writes to.
        predictor: Model of the store.
        images: All images of the source.
        source: Name of the source, by which rows of gone images are known.
        drop_gone: Whether these are deleted.
        batch_size: Images that go through the model at once.
    """
    stamps = store.read_stamps()
    waiting = [image for image in images if stamps.get(image.path, ("", ""))[1] != image.stamp]
    report = EmbedReport(len(images), unreadable={})
    assert report.unreadable is not None
    start = written = time.perf_counter()
    if waiting:
        store.add_columns(waiting)
    progress = _Progress(len(waiting))
    rows: list[Prepared] = []
    vectors: list[np.ndarray] = []
    current: set[str] = set()
    for batch, values in embed_batches(predictor, waiting, batch_size):
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

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = self._last = time.monotonic()

    def show(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last < _TICK:
            return
        self._last = now
        rate = done / (now - self._start)
        left = (self._total - done) / max(rate, 1e-9)
        print(
            f"{done:,} of {self._total:,} images, {rate:.1f} images/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
