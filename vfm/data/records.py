"""One image of a split, not yet opened: where it is, and what is said of it."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import DataError

from vfm.data.detection.annotation import Annotation
from vfm.data.tar import TarImage


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a split, not yet opened."""

    source: str | TarImage | NDArray[np.uint8]
    """Path of a file, an image in a tar file, or uint8 [H, W, 3] or [H, W]."""
    label: int | tuple[int, ...]
    """Index into the label names, or all that apply where there are several; -1 where nothing is known."""
    name: str
    """Name in results: the path below the data's root, or what the data calls it."""
    groups: tuple[str, ...] = ()
    """A value for each of the data's group columns."""
    objects: Annotation | None = None
    """Where the objects are, whose classes `label` lists; None where the data has no boxes."""
    key: str = ""
    """What images have in common that must not be divided, such as a patient; empty where an image stands alone."""
    texts: tuple[str, ...] = ()
    """What is written of the image, each by itself enough; none where nothing is."""


def read_source(record: Record) -> str | bytes | NDArray[np.uint8]:
    """What `open_image` takes for a record."""
    return record.source.read() if isinstance(record.source, TarImage) else record.source


def describe_content(record: Record) -> str:
    """What a fingerprint holds of an image's content: a sha256 of an array, the size of a file in bytes."""
    if isinstance(record.source, np.ndarray):
        shape = repr(record.source.shape).encode()
        return hashlib.sha256(shape + record.source.tobytes()).hexdigest()
    if isinstance(record.source, TarImage):
        return str(record.source.size)
    try:
        return str(os.stat(record.source).st_size)  # noqa: PTH116 - of millions, sooner than by Path
    except OSError:
        # It will be reported as skipped when it is opened.
        return "unreadable"


def describe_record(record: Record) -> str:
    """What a fingerprint holds of an image: its name, its content, and all that is said of it."""
    parts = [record.name, str(record.label), describe_content(record)]
    if boxes := record.objects:
        values = boxes.corners.tobytes() + boxes.ignored.tobytes()
        parts.append(hashlib.sha256(values).hexdigest())
    return "\t".join([*parts, *record.texts])


def read_mtime(record: Record) -> int:
    """When the file of an image was last changed, in ns; 0 of an array, and where there is no such file."""
    if isinstance(record.source, np.ndarray):
        return 0
    path = record.source.shard if isinstance(record.source, TarImage) else record.source
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


def hash_content(record: Record) -> str | None:
    """A sha256 of an image's file, or of its array; None of a file that cannot be read."""
    try:
        source = read_source(record)
        content = Path(source).read_bytes() if isinstance(source, str) else bytes(source)
    except OSError:
        return None
    return hashlib.sha256(content).hexdigest()


def list_labels(record: Record) -> tuple[int, ...]:
    """Every label of an image; none where nothing is known."""
    if isinstance(record.label, tuple):
        return record.label
    return (record.label,) if record.label >= 0 else ()


def check_classes(records: Mapping[str, Sequence[Record]], labels: Sequence[str]) -> None:
    """Refuse splits with classes that the train split does not have, with a DataError."""
    if not records.get("train"):
        return
    learned = {label for record in records["train"] for label in list_labels(record)}
    for split in ("val", "test"):
        extra = {i for record in records.get(split, []) for i in list_labels(record)} - learned
        if extra:
            names = ", ".join(f"'{labels[label]}'" for label in sorted(extra))
            raise DataError(
                f"The {split} split has classes without training images: {names}. "
                "Add training images of them, or take them out of that split."
            )
