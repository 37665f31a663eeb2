"""An image or video that is real or fake: what is known of it, and what contradicts itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal, NamedTuple

from vfm_runtime.errors import VfmError

from vfm.data.layouts import Reading
from vfm.data.splits import SPLITS

REAL = "real"
FAKE = "fake"
LABELS = (REAL, FAKE)
"""In the order of their indices: fake is 1 and positive."""

MAX_ABSENT = 0.01
"""Share of the files of a list that may be missing."""

LabelName = Literal["real", "fake"]


class DeepfakeDataError(VfmError, ValueError):
    """Forged images, their lists or their splits are not as they must be; the text says what to do."""


class Item(NamedTuple):
    """An image, or a video file."""

    path: str
    """Absolute, or below the folder of the manifest that it is written to; with forward slashes."""
    label: LabelName
    video: str
    """What the image is a frame of, unique within data set and method; the image's own name for a still."""
    identities: tuple[str, ...] = ()
    """Whose faces it is made from. A name means the same person in every data set."""
    method: str = ""
    """How a fake was made; "" for what is real, and never for a fake."""
    dataset: str = ""
    split: str = ""
    """train, val or test; "" where nothing says so."""
    compression: str = ""
    """Of the video, such as c23."""
    mask: str = ""
    """Path of an image, or a video, that is white where the picture was changed."""
    source: str = ""
    """Of a fake: the `video` of the real one, in the same data set, that it was made from."""
    frame: int = -1
    """Number of the frame in its video; -1 for a still and for a video file."""
    landmarks: str = ""
    """Path of the facial points of an image."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the video: data set, method and video, since names recur between methods."""
        return (self.dataset, self.method, self.video)


COLUMNS = Item._fields
"""Of a manifest, of which only path and label are needed."""


def group_items(items: Iterable[Item], notes: Sequence[str] = ()) -> Reading[Item]:
    """A reading of items, each in the split that it names.

    Args:
        items: Images and videos.
        notes: What a person should know of them, a sentence or two each.
    """
    splits: dict[str, list[Item]] = {}
    for item in items:
        splits.setdefault(item.split, []).append(item)
    return Reading(splits, LABELS, notes)


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Key that sorts 2 before 10."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts)


def ordered(items: Iterable[Item]) -> list[Item]:
    """Items by data set, method and video, and the frames of a video by number, whatever the order of the files."""
    number = cache(natural)  # a video has many frames
    return sorted(
        items,
        key=lambda item: (
            item.dataset,
            item.method,
            number(item.video),
            item.frame,
            natural(item.path) if item.frame < 0 else (),
        ),
    )


def fingerprint(items: Iterable[Item]) -> str:
    """A hash (sha256) of which images with which labels these are.

    It depends neither on their order, nor on where they lie, nor on what their split is called.
    """
    rows = sorted(
        (*item.key, str(item.frame), item.label, item.compression, item.path.rpartition("/")[2])
        for item in items
    )
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def check_items(items: Sequence[Item], where: str) -> None:
    """Refuse items that contradict themselves or each other.

    As what is real has no method and what is fake has one, no video can hold both labels.

    Args:
        items: Of all splits.
        where: What they come from, for the message.

    Raises:
        DeepfakeDataError: A label or split is none, a real has a method or a fake none, or an image is listed twice.
    """
    paths: set[str] = set()
    for item in items:
        _check_item(item, where)
        if item.path in paths:
            raise DeepfakeDataError(
                f"{where} lists {item.path} twice. Keep one row for each image or video."
            )
        paths.add(item.path)


def count_label(items: Iterable[Item], label: str) -> int:
    """How many items have a label."""
    return sum(item.label == label for item in items)


def require_both(items: Sequence[Item], where: str) -> None:
    """Refuse items of one label only.

    Raises:
        DeepfakeDataError: With the number of each.
    """
    counts = {label: count_label(items, label) for label in LABELS}
    missing = [label for label, number in counts.items() if not number]
    if missing:
        given = " and ".join(f"{number} {label}" for label, number in counts.items())
        raise DeepfakeDataError(
            f"{where} has {given} images or videos. Telling them apart takes both: add {missing[0]} ones, or check "
            "which label is which."
        )


def _check_item(item: Item, where: str) -> None:
    if item.label not in LABELS:
        raise DeepfakeDataError(
            f"{where}: the label of {item.path} is '{item.label}'. Choices: {', '.join(LABELS)}."
        )
    if item.split and item.split not in SPLITS:
        raise DeepfakeDataError(
            f"{where}: the split of {item.path} is '{item.split}'. Choices: {', '.join(SPLITS)}, or nothing."
        )
    if item.label == REAL and item.method:
        raise DeepfakeDataError(
            f"{where}: {item.path} is real, but has the method '{item.method}'. The method says how a fake was made: "
            "leave it empty for what is real."
        )
    if item.label == FAKE and not item.method:
        raise DeepfakeDataError(
            f"{where}: {item.path} is fake, but has no method. Name how it was made, or write '{FAKE}'."
        )
