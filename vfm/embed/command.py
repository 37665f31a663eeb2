"""`vfm embed`: images and videos into a store of vectors, which goes on where it was stopped."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.media.demux import import_av

from vfm.embed.lightning_engine import make_lightning_engine
from vfm.embed.location import find_folder, lock_store
from vfm.embed.migration import GIVEN_UP, give_up_migration, migrate_store, open_next
from vfm.embed.models import open_embedder
from vfm.embed.passes import embed_batches
from vfm.embed.ray_engine import open_ray_engine
from vfm.embed.sources import list_source_images
from vfm.embed.store import EmbeddingStore, StoreModel, check_export
from vfm.embed.update import EmbedBatches, EmbedReport, update_store
from vfm.models.heads.embedding import EmbeddingSource

UNREADABLE_FILE = "unreadable.csv"
"""Images that could not be read, in the folder of a store."""

_SHOWN = 5


def embed(
    source: str,
    *,
    to: str | None = None,
    model: str | None = None,
    migrate: str | None = None,
    embedding: EmbeddingSource | None = None,
    normalize: bool = True,
    bit_depth: int | None = None,
    base: Path | None = None,
    path_column: str = "path",
    num_frames: int = 8,
    drop_gone: bool = False,
    half: bool = False,
    export: Path | None = None,
    engine: Literal["local", "lightning", "ray"] = "local",
    workers: int = 0,
    device: str = "auto",
    batch_size: int = 32,
    trust: Sequence[str] = (),
) -> None:
    """Embed the images of a folder, table or shards into a store; images that it has already are not embedded again.

    With --migrate the images of a store are embedded again by another model, whose vectors then replace those that it
    has, all at once; until then it answers as before.

    Args:
        source: Folder of images and videos, a table of images (.csv, .tsv, .parquet), or tar files of them, such as
            'train-{000..127}.tar'; with --migrate a store.
        to: Folder of the store (LanceDB), made if missing, or the address of one in an object store.
        model: Name of a backbone, checkpoint, folder of a bundle that embeds, or open_clip:NAME/WEIGHTS, so that words
            can be searched for.
        migrate: In place of --to and --model: the model that the store is to be of, or none, which gives up a migration
            that was begun.
        embedding: What the vector is made of: pooled (the default), class_token, patches or layers.
        normalize: Divide each vector by its L2 norm.
        bit_depth: Bits that the values of images of 16 or 32 bits use, such as 12; the store remembers it.
        base: File of the backbone's weights, for an adapter, or for a name in place of timm's.
        path_column: Column of a table with the paths of the images.
        num_frames: Frames of each video of a folder, spread evenly, that are embedded beside their mean; 0 for none.
        drop_gone: Delete rows of this source whose images are gone; leave those out that a migration cannot read.
        half: Keep vectors in 16 bits, in a new store.
        export: Also write all rows to a .parquet or .npz file.
        engine: Where the model runs: local, in this process; lightning, in processes of this machine; or ray, in
            workers of a cluster of Ray, which start again when they are killed.
        workers: Number of processes or workers; by default one for each GPU, or for each CPU without.
        device: cpu, cuda, or auto for CUDA where there is one.
        batch_size: Images that go through the model at once.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        StoreError: The store holds vectors of another model, or another process writes to it.
        DataError: The source holds no images.
        EngineError: Processes or workers die, or cannot open the model.
    """
    name = _check_options(to, model, migrate, batch_size, num_frames)
    if export is not None:
        check_export(export)
    uri = source if to is None else to
    if migrate == GIVEN_UP:
        with lock_store(uri):
            print(give_up_migration(EmbeddingStore.open(uri)))
        return
    images = [] if to is None else list_source_images(source, path_column, num_frames=num_frames)
    if any(image.num_frames for image in images):
        import_av()
    name = str(Path(name).absolute()) if Path(name).exists() else name
    base = None if base is None else base.absolute()
    opening: dict[str, Any] = {"model": name, "source": embedding, "normalize": normalize}
    opening |= {"base": base, "bit_depth": bit_depth, "device": device, "trust": tuple(trust)}
    predictor, spec = open_embedder(**opening)
    (width,) = predictor.embed(np.zeros((8, 8, 3), np.uint8)).shape
    described = StoreModel(
        fingerprint=spec.fingerprint,
        model=name,
        base=None if base is None else str(base),
        source=spec.source,
        normalize=spec.normalize,
        width=width,
        value_range=predictor.value_range,
    )
    with ExitStack() as stack:
        run: EmbedBatches = partial(embed_batches, predictor, batch_size=batch_size)
        if engine == "ray":
            cluster = open_ray_engine(opening, spec, batch_size=batch_size, num_workers=workers)
            run = stack.enter_context(cluster)
        elif engine == "lightning":
            run = make_lightning_engine(opening, spec, batch_size=batch_size, num_workers=workers)
        stack.enter_context(lock_store(uri))
        if to is None:
            store, report = _migrate(uri, described, run, drop_gone)
        else:
            store = EmbeddingStore.find(to) or EmbeddingStore.create(
                to, described, images, half=half
            )
            store.require_model(spec, name)
            origin = source if ".tar" in source else str(Path(source).absolute())
            report = update_store(store, run, images, origin, drop_gone=drop_gone, tell=_tell)
        unreadable = report.unreadable or {}
        _list_unreadable(uri, unreadable)
        if export is not None:
            store.export(export)
            print(f"Vectors: {export}")
    rate = report.num_embedded / max(report.seconds, 1e-9)
    print(
        f"{report.num_embedded:,} of {report.num_images:,} images embedded now ({rate:.1f} images/s), "
        f"{report.num_dropped:,} rows dropped; {uri} holds {store.num_rows:,} vectors of {store.model.width} numbers."
    )
    if unreadable and len(unreadable) == len(images):
        raise DataError(f"None of the {len(images):,} images of {source} could be read.")


def _check_options(
    to: str | None, model: str | None, migrate: str | None, batch_size: int, num_frames: int
) -> str:
    """Refuse what cannot go together, and return the name of the model."""
    if batch_size < 1 or num_frames < 0:
        raise OptionError(
            f"--batch_size is {batch_size} and --num_frames {num_frames}. Give at least 1, and 0."
        )
    if migrate is not None and to is None and model is None:
        return migrate
    if migrate is None and to is not None and model is not None:
        return model
    options = {"--to": to, "--model": model, "--migrate": migrate}
    names = [f"{name} {value}" for name, value in options.items() if value is not None]
    raise OptionError(
        f"{' and '.join(names) or 'None of --to, --model and --migrate'} was given. To embed images: vfm embed IMAGES "
        "--to STORE --model NAME. To embed those of a store again by another model: vfm embed STORE --migrate NAME."
    )


def _migrate(
    uri: str, model: StoreModel, run: EmbedBatches, leave_out: bool
) -> tuple[EmbeddingStore, EmbedReport]:
    store = EmbeddingStore.open(uri)
    report = migrate_store(
        store,
        open_next(store, model),
        run,
        leave_out=leave_out,
        list_unreadable=partial(_list_unreadable, uri),
        tell=_tell,
    )
    print(f"{uri} is now of {model.model}, no longer of {store.model.model}.")
    if report.lost_index:
        print(f"Its index was of the old vectors. Build it again: vfm index {uri}")
    return report.store, report.embedded


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _list_unreadable(uri: str, unreadable: Mapping[str, str]) -> None:
    """Say which files could not be read, and write them into the folder of a store, in place of those of the last run.

    An object store has no such folder: there all of them are said.
    """
    folder = find_folder(uri)
    if folder is not None:
        file = folder / UNREADABLE_FILE
        file.unlink(missing_ok=True)
        if unreadable:
            with file.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([("path", "reason"), *unreadable.items()])
    for path, reason in list(unreadable.items())[: _SHOWN if folder is not None else None]:
        _tell(f"unreadable: {path}: {reason}")
    if unreadable:
        where = "those above" if folder is None else f"{UNREADABLE_FILE} in the store"
        number = "1 image" if len(unreadable) == 1 else f"{len(unreadable):,} images"
        _tell(f"{number} could not be read, so no row was written: see {where}.")
