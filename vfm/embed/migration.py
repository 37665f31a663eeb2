"""Migration of a store to another model: a second table grows beside it, and replaces it at once when it is whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from vfm_runtime.errors import DataError

from vfm.data.records import Record
from vfm.data.tar import ShardError, list_shard
from vfm.embed.location import StoreError
from vfm.embed.query_map import (
    FEWEST,
    NUM_FITTED,
    NUM_QUERIES,
    QueryMap,
    fit_query_map,
    measure_query_map,
)
from vfm.embed.sources import FRAME_MARK, LABEL_FILE, Cell, SourceImage
from vfm.embed.store import NEXT_TABLE, RESERVED, EmbeddingStore, StoreModel
from vfm.embed.update import EmbedBatches, EmbedReport, update_store

GIVEN_UP = "none"
"""Stands in place of the model that a store is migrated to, for none."""


@dataclass(frozen=True, slots=True)
class StoredImage(SourceImage):
    """An image of a store, to be embedded again."""

    row_stamp: str = ""
    """The stamp of its row, which stays: an image that has changed since is embedded once more by the next update."""

    @property
    def stamp(self) -> str:
        """The stamp of its row."""
        return self.row_stamp


@dataclass(frozen=True)
class MigrationReport:
    """What a migration did."""

    store: EmbeddingStore
    """The store, by the new model."""
    embedded: EmbedReport
    """Images that were embedded in this run."""
    lost_index: bool
    """Whether there was an index, of the old vectors."""


def open_next(store: EmbeddingStore, model: StoreModel) -> EmbeddingStore:
    """Open the table of the new vectors of a store, made if missing.

    Raises:
        StoreError: The store is by this model already, or is being migrated to another.
    """
    if store.model.is_made_by(model):
        raise StoreError(
            f"{store.uri} holds vectors of {model.model} already. There is nothing to migrate; vfm embed IMAGES --to "
            f"{store.uri} embeds what is new."
        )
    following = EmbeddingStore.find(store.uri, NEXT_TABLE)
    # A run that was killed after the exchange leaves the table of the model that the store has now.
    if following is not None and following.model.is_made_by(store.model):
        store.drop_next()
        following = None
    if following is not None and not following.model.is_made_by(model):
        raise StoreError(
            f"{store.uri} is being migrated to {following.model.model} (fingerprint "
            f"{following.model.fingerprint[:12]}), not to {model.model}. Go on with that one, or give it up: vfm embed "
            f"{store.uri} --migrate {GIVEN_UP}"
        )
    return following or store.create_next(model)


def give_up_migration(store: EmbeddingStore) -> str:
    """Delete the new vectors of a migration that was begun, and return what to say of it."""
    following = EmbeddingStore.find(store.uri, NEXT_TABLE)
    if following is None:
        return f"{store.uri} is of {store.model.model}, and not being migrated: there is nothing to give up."
    num_rows = following.num_rows
    store.drop_next()
    return f"{store.uri} stays of {store.model.model}; {num_rows:,} vectors of {following.model.model} are deleted."


def migrate_store(
    store: EmbeddingStore,
    following: EmbeddingStore,
    embed: EmbedBatches,
    *,
    leave_out: bool,
    list_unreadable: Callable[[Mapping[str, str]], None],
    tell: Callable[[str], None],
) -> MigrationReport:
    """Embed the images of a store by another model into its next table, and exchange the two when that is whole.

    Args:
        store: Store, which this process alone writes to.
        following: Table of the new vectors beside it, as `open_next` gives it.
        embed: The new model, as `embed_batches` runs it.
        leave_out: Whether images that cannot be read any more are left out of the new store.
        list_unreadable: Given the reason by path of those.
        tell: Told what is being done.

    Raises:
        DataError: No image can be read, or some cannot and are not to be left out; the store is what it was.
    """
    images = list_stored_images(store)
    query_map = QueryMap.find(store, following.model)
    if query_map is None and store.num_rows >= FEWEST:
        order = np.random.default_rng(0).permutation(len(images))
        sample = [images[i] for i in sorted(order[: NUM_FITTED + NUM_QUERIES])]
        update_store(following, embed, sample, "", tell=tell)
        query_map = fit_query_map(store, following)
        query_map.write(store)
        tell(
            f"Queries by {following.model.model} are answered meanwhile through a linear map fitted on "
            f"{query_map.facts.num_fitted:,} images: {query_map.facts.describe()}."
        )
    report = update_store(following, embed, images, "", tell=tell)
    unreadable = report.unreadable or {}
    if len(unreadable) == len(images) or (unreadable and not leave_out):
        list_unreadable(unreadable)
        raise DataError(
            f"{len(unreadable):,} of {len(images):,} images of {store.uri} cannot be read any more. It keeps the "
            f"vectors of {store.model.model}. Bring the images back and run the same command again, which embeds these "
            "alone, or leave them out: --drop-gone true."
        )
    listed = {image.path for image in images}
    paths = following.read_stamps()
    following.delete([path for path in paths if path.partition(FRAME_MARK)[0] not in listed])
    if query_map is not None:
        facts = measure_query_map(query_map, store, following).facts
        tell(f"All images are embedded. The linear map had, of all of them, {facts.describe()}.")
    lost_index = store.read_index_facts() is not None
    return MigrationReport(store.replace_by(following), report, lost_index)


def list_stored_images(store: EmbeddingStore) -> list[SourceImage]:
    """List the images and videos of a store, with all columns of their rows; a video stands for its frames."""
    others = ["vfm_source", *(name for name in store.column_names if name not in RESERVED)]
    rows: list[tuple[str, Mapping[str, Cell], str]] = []
    num_frames: Counter[str] = Counter()
    # Rows of one folder share their columns: a million of their own would take a gigabyte.
    shared: dict[tuple[Cell, ...], Mapping[str, Cell]] = {}
    names = ["path", "vfm_stamp", *others]
    for _, values in store.read(names):
        for path, stamp, *cells in zip(*(values[name] for name in names), strict=True):
            video, mark, _ = path.partition(FRAME_MARK)
            if mark:
                num_frames[video] += 1
                continue
            columns = shared.get(tuple(cells))
            if columns is None:
                columns = shared[tuple(cells)] = dict(zip(others, cells, strict=True))
            rows.append((path, columns, stamp))
    records = dict(_find_shard_records([path for path, *_ in rows]))
    return [
        StoredImage(path, columns, num_frames[path], records.get(path), stamp)
        for path, columns, stamp in rows
    ]


def _find_shard_records(paths: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Yield the records of images in shards; those of a shard that is gone have none, and cannot be read."""
    marks = (path.rpartition(".tar#") for path in paths)
    for shard in dict.fromkeys(f"{name}.tar" for name, mark, _ in marks if mark):
        try:
            samples = list_shard(shard, LABEL_FILE)
        except (OSError, ShardError):
            continue
        for sample in samples:
            yield f"{shard}#{sample.key}", Record(sample.image, -1, sample.key)
