"""Search without an index: the nearest vectors by cosine, and the table of vectors that a bundle may carry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.errors import BundleError, DataError, OptionError
from vfm_runtime.tasks.embedding import EmbeddingSpec

VECTORS_FILE = "vectors.npy"
ROWS_FILE = "vectors.json"
MOST_VECTORS = 50_000
"""Rows that are compared one by one in some milliseconds, and that a bundle may carry."""

FORMAT = 1
_TOLERANCE = 1e-3
"""Of a norm, which is 1."""
_REMEDY = "Write it again: vfm index STORE --bundle BUNDLE -o OUT."


@dataclass(frozen=True)
class Neighbor:
    """An image near to a query."""

    path: str
    """Where the image was embedded from."""
    similarity: float
    """Cosine of the two vectors, -1 to 1."""
    columns: Mapping[str, Any]
    """Other values of its row, such as its label."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "path": self.path,
            "similarity": self.similarity,
            "columns": dict(self.columns),
        }


def find_nearest(similarities: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Return the positions of the largest of N similarities, best first; equal ones in their order.

    Args:
        similarities: Similarity of each of N vectors to a query.
        count: Number of positions to return at most.
    """
    candidates = np.arange(len(similarities))
    if count < len(similarities):
        least = np.partition(similarities, len(similarities) - count)[-count] if count else np.inf
        candidates = np.flatnonzero(similarities >= least)
    order = np.argsort(-similarities[candidates], kind="stable")
    return candidates[order][:count]


@dataclass(frozen=True, eq=False)
class VectorTable:
    """Vectors of N images with their names, compared with a query one by one, so that every answer is exact."""

    embedding: EmbeddingSpec
    """What the vectors are made of."""
    vectors: NDArray[np.float32]
    """Vectors of norm 1, float32 [N, D]."""
    paths: Sequence[str]
    """Where each image was embedded from; equal similarities are listed in this order."""
    columns: Mapping[str, Sequence[Any]]
    """N other values by name, such as the labels."""

    def __post_init__(self) -> None:
        """Refuse what does not go together.

        Raises:
            OptionError: There are more vectors than a bundle may carry.
            DataError: There are none, or they are no vectors of norm 1 with a name and values each.
        """
        number = len(self.vectors)
        if number > MOST_VECTORS:
            raise OptionError(
                f"There are {number:,} vectors, and a bundle carries {MOST_VECTORS:,} at most, which are compared one "
                "by one. Take fewer (vfm index STORE --bundle BUNDLE --where \"split = 'train'\"), or search the store "
                "itself: vfm search STORE."
            )
        lengths = {len(self.paths), *map(len, self.columns.values())}
        if self.vectors.ndim != 2 or not number or lengths != {number}:
            raise DataError(
                f"There are vectors of shape {list(self.vectors.shape)} with {len(self.paths)} names and columns of "
                f"{sorted(lengths)} values. Give one or more, and a name and values for each."
            )
        norms = np.linalg.norm(self.vectors, axis=1)
        # Written so that NaN is refused too.
        if self.vectors.dtype != np.float32 or not (np.abs(norms - 1) <= _TOLERANCE).all():
            raise DataError(
                f"The vectors are {self.vectors.dtype} with norms from {norms.min():g} to {norms.max():g}. Give "
                "float32 of norm 1."
            )

    def write(self, folder: Path) -> None:
        """Write both files into the folder of a bundle, whose manifest is written afterwards."""
        np.save(folder / VECTORS_FILE, self.vectors, allow_pickle=False)
        values = {
            "format": FORMAT,
            "fingerprint": self.embedding.fingerprint,
            "source": self.embedding.source,
            "paths": list(self.paths),
            "columns": {name: list(cells) for name, cells in self.columns.items()},
        }
        text = json.dumps(values, allow_nan=False, separators=(",", ":"))
        (folder / ROWS_FILE).write_text(text + "\n", encoding="utf-8", newline="\n")

    @classmethod
    def read(cls, folder: Path, embedding: EmbeddingSpec | None) -> Self:
        """Read both files of a bundle whose checksums were checked.

        Args:
            folder: Folder of the bundle.
            embedding: What the vectors of the bundle's graph are made of; None where it gives none.

        Raises:
            BundleError: They are of another model, of a newer format, or are not what `write` writes.
        """
        try:
            values = json.loads((folder / ROWS_FILE).read_text(encoding="utf-8"))
            written = values["format"], values["fingerprint"], values["source"]
            paths, columns = list(values["paths"]), dict(values["columns"])
            vectors = np.load(folder / VECTORS_FILE, allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise BundleError(
                f"{folder / VECTORS_FILE} and {ROWS_FILE} are no vectors to search in ({error}). {_REMEDY}"
            ) from error
        if written[0] != FORMAT:
            raise BundleError(
                f"{folder / ROWS_FILE} has the format {written[0]!r}, and this version reads {FORMAT}. To read it, "
                "upgrade vfm-runtime: pip install --upgrade vfm-runtime."
            )
        expected = None if embedding is None else (embedding.fingerprint, embedding.source)
        if embedding is None or written[1:] != expected:
            gives = (
                "gives no embeddings"
                if embedding is None
                else f"gives {embedding.source}, fingerprint {embedding.fingerprint[:12]}"
            )
            raise BundleError(
                f"{folder / VECTORS_FILE} holds vectors of another model ({written[2]}, fingerprint "
                f"{str(written[1])[:12]}): the bundle's {gives}. Vectors of two models cannot be compared. {_REMEDY}"
            )
        try:
            return cls(embedding, vectors, paths, columns)
        except (OptionError, DataError, TypeError) as error:
            raise BundleError(f"{folder / VECTORS_FILE}: {error}") from error

    def search(self, query: NDArray[np.float32], count: int = 10) -> list[Neighbor]:
        """Return the images with the largest cosine, best first.

        Args:
            query: Vector to look for, float32 [D].
            count: Number of images to return at most.

        Raises:
            OptionError: The count is below 1.
            DataError: The query has another width, or is zero.
        """
        if count < 1:
            raise OptionError(f"k is {count}. Ask for at least 1 image.")
        width, norm = self.vectors.shape[1], float(np.linalg.norm(query))
        if query.shape != (width,) or not norm > 0:
            raise DataError(
                f"The query has shape {list(query.shape)} and norm {norm:g}; it is compared with vectors of {width} "
                "numbers, and must not be 0. Take the model and precision that the vectors are of."
            )
        similarities = self.vectors @ (query / norm).astype(np.float32)
        return [
            Neighbor(
                self.paths[row],
                float(similarities[row]),
                {name: cells[row] for name, cells in self.columns.items()},
            )
            for row in find_nearest(similarities, count).tolist()
        ]
