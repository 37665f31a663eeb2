"""Item: what is known of an image or video that is real or fake, in what order items stand, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
"""Fraction of the files of a list that may be missing."""

LabelName = Literal["real", "fake"]


class DeepfakeDataError(VfmError, ValueError):
    """Real and fake images, their lists or their splits are not as they must be; the text says what to do."""


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
    """Compression of the video, such as c23."""
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


def parse_label(
    cell: str, where: str, words: Mapping[str, LabelName] | None = None, hint: str = ""
) -> LabelName:
    """Read a label: real or fake in any case, or what other words mean.

    Raises:
        DeepfakeDataError: It is none; the text says where it stands, and ends in the hint.
    """
    meanings: dict[str, LabelName] = {"real": "real", "fake": "fake", **(words or {})}
    label = meanings.get(cell) or meanings.get(cell.lower())
    if label not in LABELS:
        choices = ", ".join(meanings)
        raise DeepfakeDataError(f"{where}: the label is '{cell}'. Choices: {choices}.{hint}")
    return label


def group_items(items: Iterable[Item], notes: Sequence[str] = ()) -> Reading[Item]:
    """Put items into a reading, each into the split that it names, with notes for a person to read."""
    splits: dict[str, list[Item]] = {}
    for item in items:
        splits.setdefault(item.split, []).append(item)
    return Reading(splits, LABELS, notes)


def split_digits(text: str) -> tuple[tuple[int, int, str], ...]:
    """Key that sorts 2 before 10."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts)


def sort_items(items: Iterable[Item]) -> list[Item]:
    """Sort by data set, method and video, and the frames of a video by number, whatever the order of the files."""
    video_key = cache(split_digits)  # a video has many frames
    return sorted(
        items,
        key=lambda item: (
            item.dataset,
            item.method,
            video_key(item.video),
            item.frame,
            split_digits(item.path) if item.frame < 0 else (),
        ),
    )


def check_items(items: Sequence[Item], where: str) -> None:
    """Refuse items that contradict themselves or each other.

    As what is real has no method and what is fake has one, no video can hold both labels.

    Raises:
        DeepfakeDataError: A label or split is none, a real has a method or a fake none, or an image is listed twice.
    """
    paths: set[str] = set()
    for item in items:
        wrong = _find_contradiction(item)
        if wrong:
            raise DeepfakeDataError(f"{where}: {wrong}")
        if item.path in paths:
            raise DeepfakeDataError(
                f"{where} lists {item.path} twice. Keep one row for each image or video."
            )
        paths.add(item.path)


def _find_contradiction(item: Item) -> str:
    if item.label not in LABELS:
        return f"the label of {item.path} is '{item.label}'. Choices: {', '.join(LABELS)}."
    if item.split and item.split not in SPLITS:
        choices = ", ".join(SPLITS)
        return f"the split of {item.path} is '{item.split}'. Choices: {choices}, or nothing."
    if item.label == REAL and item.method:
        return (
            f"{item.path} is real, but has the method '{item.method}'. The method says how a fake was made: leave it "
            "empty for what is real."
        )
    if item.label == FAKE and not item.method:
        return f"{item.path} is fake, but has no method. Name how it was made, or write '{FAKE}'."
    return ""


def count_label(items: Iterable[Item], label: str) -> int:
    """Count the items that have a label."""
    return sum(item.label == label for item in items)
