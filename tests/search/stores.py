"""Stores of vectors that no model made."""

from dataclasses import dataclass

from vfm.embed.store import EmbeddingStore, StoreModel


@dataclass
class Row:
    columns: dict


def write_store(uri, vectors, paths=None, start=0, **columns):
    """Write rows to a store, a new one or one that exists; `columns` are lists of values."""
    width = vectors.shape[1]
    facts = dict(fingerprint="f", model="m", base=None, source="pooled", normalize=False)
    paths = paths or [f"/x/{start + i:05d}.png" for i in range(len(vectors))]
    rows = [
        Row(dict(zip(columns, cells, strict=True))) for cells in zip(*columns.values(), strict=True)
    ]
    store = EmbeddingStore.find(uri)
    store = store or EmbeddingStore.create(uri, StoreModel(**facts, width=width), rows)
    store.write(vectors, {"path": paths, "sha256": [str(i) for i in range(len(paths))], **columns})
    return store
