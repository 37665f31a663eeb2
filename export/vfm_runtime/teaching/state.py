"""Taught state: labels and embeddings of the examples that a model was taught, as one file of arrays."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.errors import DataError, OptionError, format_value
from vfm_runtime.validation import is_whole

FORMAT = 1
MOST_EXAMPLES, MOST_CLASSES, MOST_BYTES = 20_000, 10_000, 2**29
"""Bounds of a state: examples, classes, and bytes of vectors and pictures."""
_LONGEST_LABEL = 200
_ARRAYS = ("meta", "vectors", "classes", "pictures", "ends")
_SURROUNDINGS = "surroundings"


@dataclass(frozen=True)
class TaughtExample:
    """One image, or one box in an image, that a class was taught by."""

    label: str
    sha256: str
    """Checksum of its file, or of its pixels; of a box, of this and its corners."""
    name: str
    """Name of its file without folders; empty of other images."""


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What an image with boxes of a class shows besides them: other objects and background, M boxes."""

    label: str
    """Class whose boxes are left out."""
    sha256: str
    """Checksum of the image."""
    vectors: NDArray[np.float32]
    """Embeddings of the other boxes, [M, D]."""


@dataclass(frozen=True, eq=False)
class TaughtState:
    """All that was taught, N examples; a new one is made for every change."""

    fingerprint: str
    """Fingerprint of the model whose vectors these are."""
    version: int = 0
    """Number of changes since the state began."""
    examples: tuple[TaughtExample, ...] = ()
    vectors: NDArray[np.float32] | None = None
    """Embeddings, [N, D]; None where there are no examples."""
    pictures: tuple[bytes, ...] = ()
    """A small JPEG of each example, empty where none was kept."""
    surroundings: tuple[Surroundings, ...] = ()
    """What a detector's classes are told apart from; none of classes of whole images."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order in which they were taught."""
        return tuple(dict.fromkeys(example.label for example in self.examples))

    @property
    def counts(self) -> dict[str, int]:
        """Number of examples by class."""
        counts = dict.fromkeys(self.labels, 0)
        for example in self.examples:
            counts[example.label] += 1
        return counts

    def add(
        self,
        examples: Sequence[TaughtExample],
        vectors: NDArray[np.float32],
        pictures: Sequence[bytes],
        surroundings: Sequence[Surroundings] = (),
    ) -> Self:
        """Return the state with more examples; those that it has already are left out.

        Surroundings take the place of those of the same class and image.

        Raises:
            DataError: An image is an example of another class already, or vectors have another length.
            OptionError: There would be more than the bounds allow.
        """
        labels = {example.sha256: example.label for example in self.examples}
        fresh = []
        for index, example in enumerate(examples):
            if example.sha256 not in labels:
                fresh.append(index)
            label = labels.setdefault(example.sha256, example.label)
            if label != example.label:
                raise DataError(
                    f"The image {example.name or example.sha256[:12]} is an example of '{label}' already, and cannot "
                    f"be one of '{example.label}' too. Leave it out, or forget '{label}' first."
                )
        before = (
            np.zeros((0, vectors.shape[1]), np.float32) if self.vectors is None else self.vectors
        )
        if before.shape[1] != vectors.shape[1]:
            raise DataError(
                f"The state holds vectors of {before.shape[1]} numbers, and the model gives {vectors.shape[1]}. Take "
                "the model that was taught, or another state."
            )
        new = {(one.label, one.sha256) for one in surroundings}
        before_them = [one for one in self.surroundings if (one.label, one.sha256) not in new]
        state = replace(
            self,
            version=self.version + bool(fresh),
            examples=(*self.examples, *(examples[i] for i in fresh)),
            vectors=np.concatenate([before, vectors[fresh]]).astype(np.float32, copy=False),
            pictures=(*self.pictures, *(pictures[i] for i in fresh)),
            surroundings=(*before_them, *surroundings),
        )
        state.check_bounds()
        return state

    def drop(self, label: str) -> Self:
        """Return the state without a class, its vectors and pictures.

        Raises:
            OptionError: No such class was taught.
        """
        if label not in self.labels:
            shown = ", ".join(f"'{name}'" for name in self.labels[:20]) or "none"
            raise OptionError(f"There is no taught class {format_value(label)}. Taught: {shown}.")
        rows = [i for i, example in enumerate(self.examples) if example.label != label]
        assert self.vectors is not None
        return replace(
            self,
            version=self.version + 1,
            examples=tuple(self.examples[i] for i in rows),
            vectors=self.vectors[rows] if rows else None,
            pictures=tuple(self.pictures[i] for i in rows),
            surroundings=tuple(one for one in self.surroundings if one.label != label),
        )

    def check_bounds(self) -> None:
        """Refuse a state that is larger than it may be.

        Raises:
            OptionError: It has more examples, classes or bytes.
        """
        num_bytes = 0 if self.vectors is None else self.vectors.nbytes
        num_bytes += sum(map(len, self.pictures))
        num_bytes += sum(one.vectors.nbytes for one in self.surroundings)
        for number, most, what in (
            (len(self.examples), MOST_EXAMPLES, "examples"),
            (len(self.labels), MOST_CLASSES, "classes"),
            (num_bytes, MOST_BYTES, "bytes of vectors and pictures"),
        ):
            if number > most:
                raise OptionError(
                    f"That would make {number:,} {what}; a state holds {most:,} at most. Forget classes that are no "
                    "longer needed, or train a head with vfm."
                )

    def to_bytes(self) -> bytes:
        """Return the state as a file of numpy's arrays (.npz)."""
        labels = list(self.labels)
        rows = {label: row for row, label in enumerate(labels)}
        meta = {
            "format": FORMAT,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "labels": labels,
            "examples": [[example.sha256, example.name] for example in self.examples],
        }
        vectors = np.zeros((0, 0), np.float32) if self.vectors is None else self.vectors
        arrays = {
            "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
            "vectors": vectors,
            "classes": np.array([rows[example.label] for example in self.examples], np.int32),
            "pictures": np.frombuffer(b"".join(self.pictures), np.uint8),
            "ends": np.cumsum([len(picture) for picture in self.pictures], dtype=np.int64),
        }
        if self.surroundings:
            # Alone in states of detectors, so that earlier versions read those of images.
            meta["surroundings"] = [[s.label, s.sha256, len(s.vectors)] for s in self.surroundings]
            arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
            arrays[_SURROUNDINGS] = np.concatenate([one.vectors for one in self.surroundings])
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a state from a file with the bytes of `to_bytes`, and check the format, the sizes and every array.

        Raises:
            DataError: The file holds no state, is damaged, or has a newer format.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(info.file_size for info in archive.infolist()) > 2 * MOST_BYTES:
                    raise DataError("it is larger than a state may be")
            with np.load(path, allow_pickle=False) as arrays:
                if set(arrays.files) - {_SURROUNDINGS} != set(_ARRAYS):
                    raise DataError(f"it holds {', '.join(arrays.files[:8]) or 'nothing'}")
                meta = json.loads(arrays["meta"].tobytes())
                if isinstance(meta, dict) and meta.get("format") != FORMAT:
                    raise DataError(
                        f"its format is {format_value(meta.get('format'))}, and this version reads {FORMAT}"
                    )
                parts = {name: arrays[name] for name in arrays.files if name != "meta"}
            return cls._build(meta, parts)
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path} is no state of taught classes that can be read ({error}). Give a file that --export wrote, or "
                "start with another folder."
            ) from error

    @classmethod
    def _build(cls, meta: Any, parts: dict[str, NDArray[Any]]) -> Self:
        vectors, classes, ends = parts["vectors"], parts["classes"], parts["ends"]
        labels = [check_label(label) for label in meta["labels"]]
        number = len(meta["examples"])
        if not (is_whole(meta["version"]) and isinstance(meta["fingerprint"], str)):
            raise DataError("its version or fingerprint is none")
        fits = vectors.ndim == 2 and classes.shape == ends.shape == (len(vectors),) == (number,)
        if not fits or vectors.dtype != np.float32:
            raise DataError("its arrays do not go together")
        if not np.isfinite(vectors).all() or (number and not vectors.shape[1]):
            raise DataError("its vectors are not finite")
        if number and not (classes.min() >= 0 and classes.max() < len(labels)):
            raise DataError("it names classes that it does not have")
        data = parts["pictures"].tobytes()
        if number and (int(ends[-1]) != len(data) or (np.diff(ends) < 0).any() or ends[0] < 0):
            raise DataError("its pictures are damaged")
        examples = tuple(
            TaughtExample(labels[row], str(sha256), str(name))
            for row, (sha256, name) in zip(classes.tolist(), meta["examples"], strict=True)
        )
        pictures = tuple(data[start:end] for start, end in pairwise([0, *ends.tolist()]))
        state = cls(
            meta["fingerprint"],
            meta["version"],
            examples,
            vectors if number else None,
            pictures,
            _read_surroundings(meta, parts, labels),
        )
        state.check_bounds()
        return state


def _read_surroundings(
    meta: Any, parts: dict[str, NDArray[Any]], labels: Collection[str]
) -> tuple[Surroundings, ...]:
    rows = meta.get(_SURROUNDINGS, [])
    if not rows and _SURROUNDINGS not in parts:
        return ()
    vectors, counts = parts[_SURROUNDINGS], [count for _, _, count in rows]
    fits = all(is_whole(n) and n >= 0 for n in counts) and len(vectors) == sum(counts)
    if not fits or vectors.dtype != np.float32 or vectors.shape[1:] != parts["vectors"].shape[1:]:
        raise DataError("its surroundings do not go with its examples")
    if not np.isfinite(vectors).all() or not {label for label, _, _ in rows} <= set(labels):
        raise DataError("its surroundings are damaged")
    ends = np.cumsum(counts)
    return tuple(
        Surroundings(label, str(sha256), vectors[end - count : end])
        for (label, sha256, count), end in zip(rows, ends.tolist(), strict=True)
    )


def check_label(label: object) -> str:
    """Return the name of a class without spaces around it.

    Raises:
        OptionError: It is empty, too long, or has characters that cannot be shown.
    """
    text = label.strip() if isinstance(label, str) else ""
    if not text or len(text) > _LONGEST_LABEL or not text.isprintable():
        raise OptionError(
            f"The label is {format_value(label)}. Give a name of 1 to {_LONGEST_LABEL} characters that can be shown."
        )
    return text


def check_labels(labels: Collection[str]) -> list[str]:
    """Return the names of classes, each as of `check_label`.

    Raises:
        OptionError: A name stands twice, or cannot be one.
    """
    names = [check_label(label) for label in labels]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise OptionError(f"The label '{twice[0]}' stands twice. Name each class once.")
    return names
