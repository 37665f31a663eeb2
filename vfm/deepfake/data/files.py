"""What the folders of a data set hold: videos, their frames, masks and landmarks, and small lists."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vfm_runtime.media.image import IMAGE_SUFFIXES
from vfm_runtime.media.video import VIDEO_SUFFIXES

from vfm.deepfake.data.record import DeepfakeDataError, Item, natural

Media = Literal["auto", "videos", "frames"]
"""What to take where a data set holds videos and frames of them; `auto` takes videos."""

_PARTS = ("videos", "frames")


class Clip(NamedTuple):
    """A video as a file, or as the frames of one."""

    name: str
    files: list[str]
    """Absolute: one video, or images in the order of their numbers."""
    numbers: list[int]
    """Of the frames; -1 for a video."""


class Files:
    """Which files there are; a folder is looked at once."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def has(self, path: str) -> bool:
        """Whether a file exists."""
        folder, _, name = path.rpartition("/")
        if folder not in self._names:
            there = Path(folder or "/").is_dir()
            self._names[folder] = frozenset(os.listdir(folder or "/") if there else ())  # noqa: PTH208
        return name in self._names[folder]

    def first(self, *paths: str) -> str:
        """The first of these files that exists; "" without."""
        return next((path for path in paths if self.has(path)), "")


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        DeepfakeDataError: It is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DeepfakeDataError(f"There is no file {path}. Check the path.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DeepfakeDataError(
            f"{path} is no JSON that can be read: {error}. Download it again."
        ) from error


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Content of a JSON file that must hold an object.

    Args:
        path: Of the file.
        what: An object of what, for the message.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DeepfakeDataError(
            f"{path} holds no object ({{...}}), but {what} is expected. Download it again."
        )
    return content


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def is_video(name: str) -> bool:
    """Whether a file is a video by its name."""
    return not name.startswith(".") and name.lower().endswith(VIDEO_SUFFIXES)


def stem(name: str) -> str:
    """A file's name without folders and suffix."""
    return name.rpartition("/")[2].rpartition(".")[0]


def folders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted; none where there is no folder."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir()]
    return sorted(p for p in found if not p.name.startswith(".") and p.name != "__MACOSX")


def walk(root: Path) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Of each folder with images or videos its parts below the root, and the names of these files, in natural order."""
    base = root.as_posix()
    for place, below, names in os.walk(root):
        below[:] = sorted(n for n in below if not n.startswith(".") and n != "__MACOSX")
        media = sorted((n for n in names if is_image(n) or is_video(n)), key=natural)
        if media:
            relative = Path(place).as_posix()[len(base) :].strip("/")
            yield tuple(relative.split("/")) if relative else (), media


def frame_numbers(names: list[str]) -> list[int] | None:
    """Numbers of frames by the digits that their names end in; None where a name has none, or two have one."""
    ends = [re.search(r"(\d+)$", stem(name)) for name in names]
    numbers = [int(end[1]) for end in ends if end]
    return numbers if len(set(numbers)) == len(names) else None


def frames(folder: str, names: list[str], clip: str) -> Clip:
    """The images of a folder as the frames of one video."""
    names = sorted(names, key=natural)
    numbers = frame_numbers(names) or list(range(len(names)))
    pairs = sorted(zip(numbers, names, strict=True))
    return Clip(clip, [f"{folder}/{name}" for _, name in pairs], [number for number, _ in pairs])


def clips(folder: Path, media: Media = "auto") -> list[Clip]:
    """The videos of a folder, in natural order of their names.

    They are files in it or in its folder `videos`, or folders of frames in it or in its folder `frames`.
    """
    files = [path for place in (folder / "videos", folder) for path in _files(place)]
    found: dict[str, Clip] = {}
    if media != "frames":
        for path in files:
            if is_video(path.name):
                found.setdefault(path.stem, Clip(path.stem, [path.as_posix()], [-1]))
    if media == "frames" or (media == "auto" and not found):
        for place in [*folders(folder / "frames"), *folders(folder)]:
            names = [path.name for path in _files(place) if is_image(path.name)]
            if names and place.name not in _PARTS:
                found.setdefault(place.name, frames(place.as_posix(), names, place.name))
    return [found[name] for name in sorted(found, key=natural)]


def clip_items(clip: Clip, like: Item, files: Files) -> list[Item]:
    """An item for each file of a video, with the masks and landmarks that lie in folders beside `frames` or `videos`.

    Args:
        clip: The video.
        like: What its items have in common.
        files: To look masks and landmarks up.
    """
    items = []
    for path, number in zip(clip.files, clip.numbers, strict=True):
        items.append(
            like._replace(
                path=path,
                frame=number,
                mask=beside(path, "masks", files) if like.method else "",
                landmarks=beside(path, "landmarks", files),
            )
        )
    return items


def beside(path: str, kind: str, files: Files) -> str:
    """The mask or the landmarks of an image or video; "" where there are none.

    Args:
        path: Of the image or video, below a folder `frames` or `videos`.
        kind: masks or landmarks, the name of the folder to look in.
        files: To look it up.
    """
    for part in _PARTS:
        head, mark, tail = path.rpartition(f"/{part}/")
        if not mark:
            continue
        # The masks of FaceForensics++ as published lie above the folder of a compression.
        above = head.rpartition("/")[0]
        names = [f"{head}/{kind}/{tail}", f"{above}/{kind}/{part}/{tail}", f"{above}/{kind}/{tail}"]
        if kind == "landmarks":
            names = [f"{name.rpartition('.')[0]}.npy" for name in names]
        return files.first(*names)
    return ""


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_file()]
