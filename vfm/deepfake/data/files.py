"""Files of a data set on disk: videos, folders of frames, the masks and landmarks beside them, and JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from vfm_runtime.media.files import is_hidden
from vfm_runtime.media.image import IMAGE_SUFFIXES
from vfm_runtime.media.video import VIDEO_SUFFIXES

from vfm.data.layouts import list_files_beside
from vfm.deepfake.data.filenames import parse_name
from vfm.deepfake.data.record import DeepfakeDataError, Item, split_digits

Media = Literal["auto", "videos", "frames"]
"""What to take where a data set holds videos and frames of them; `auto` takes videos."""

_PARTS = ("videos", "frames")


def read_json(path: Path) -> Any:
    """Read a JSON file.

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


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def is_video(name: str) -> bool:
    """Whether a file is a video by its name."""
    return not name.startswith(".") and name.lower().endswith(VIDEO_SUFFIXES)


def get_stem(path: str) -> str:
    """A file's name without folders and suffix."""
    return path.rpartition("/")[2].rpartition(".")[0]


def list_files(folder: Path) -> list[Path]:
    """Files in a folder; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_file()]


def list_folders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))


def walk_media(root: Path) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield of each folder with images or videos its parts below the root, and the files' names in natural order."""
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not is_hidden(name))
        media = sorted((n for n in names if is_image(n) or is_video(n)), key=split_digits)
        if media:
            yield Path(folder).relative_to(root).parts, media


def number_frames(paths: Sequence[str]) -> list[int] | None:
    """Numbers of frames by the digits that their names end in; None where a name has none, or two have one."""
    ends = [re.search(r"(\d+)$", get_stem(path)) for path in paths]
    numbers = [int(end[1]) for end in ends if end]
    return numbers if len(set(numbers)) == len(paths) else None


def make_frames(paths: Sequence[str], common: Item) -> list[Item]:
    """Make the items of the frames of one video, in the order of their numbers, with what they have in common."""
    paths = sorted(paths, key=split_digits)
    numbers = number_frames(paths) or range(len(paths))
    pairs = sorted(zip(numbers, paths, strict=True))
    return [common._replace(path=path, frame=number) for number, path in pairs]


def read_videos(folder: Path, media: Media, common: Item) -> list[Item]:
    """Read the videos of a folder in natural order of their names, with masks, landmarks, persons and sources.

    They are files in it or in its folder `videos`, or folders of frames in it or in its folder `frames`. Masks and
    landmarks lie in folders beside `frames` or `videos`. What the videos have in common is label, method, data set.
    """
    videos: dict[str, list[Item]] = {}
    if media != "frames":
        for path in (*list_files(folder / "videos"), *list_files(folder)):
            if is_video(path.name):
                videos.setdefault(path.stem, [common._replace(path=path.as_posix())])
    if media == "frames" or (media == "auto" and not videos):
        for frames in (*list_folders(folder / "frames"), *list_folders(folder)):
            images = [p.as_posix() for p in list_files(frames) if is_image(p.name)]
            if images and frames.name not in _PARTS:
                videos.setdefault(frames.name, make_frames(images, common))
    items = []
    for name in sorted(videos, key=split_digits):
        identities, source = parse_name(common.dataset, name)
        named = common._replace(video=name, identities=identities, source=source)
        items += [named._replace(path=item.path, frame=item.frame) for item in videos[name]]
    return add_masks_and_landmarks(items)


def add_masks_and_landmarks(items: Sequence[Item]) -> list[Item]:
    """Add the masks of fakes and the landmarks, which lie in folders beside `frames` or `videos`."""
    masks = [_list_beside(item.path, "masks") if item.method else [] for item in items]
    landmarks = [
        [f"{path.rpartition('.')[0]}.npy" for path in _list_beside(item.path, "landmarks")]
        for item in items
    ]
    files = list_files_beside(path for paths in (*masks, *landmarks) for path in paths)
    return [
        item._replace(
            mask=item.mask or next((path for path in mask if path in files), ""),
            landmarks=next((path for path in points if path in files), ""),
        )
        for item, mask, points in zip(items, masks, landmarks, strict=True)
    ]


def _list_beside(path: str, kind: str) -> list[str]:
    """Where a mask or the landmarks of an image or video may lie."""
    part = next((part for part in _PARTS if f"/{part}/" in path), None)
    if part is None:
        return []
    head, _, tail = path.rpartition(f"/{part}/")
    # The masks of FaceForensics++ as published lie above the folder of a compression.
    above = head.rpartition("/")[0]
    return [f"{head}/{kind}/{tail}", f"{above}/{kind}/{part}/{tail}", f"{above}/{kind}/{tail}"]


def choose_compression(present: Iterable[str], wanted: str | None, root: Path) -> str:
    """Choose the compression of the videos to read, of those that are present; "" where none is stated.

    Raises:
        DeepfakeDataError: The wanted one is not there, or one of several is not chosen.
    """
    names = sorted(set(present))
    if wanted is not None and wanted not in names:
        raise DeepfakeDataError(
            f"{root} has no videos of compression '{wanted}'. Choices: {', '.join(names) or 'none'}."
        )
    if wanted is None and len(names) > 1:
        raise DeepfakeDataError(
            f"{root} has videos of the compressions {', '.join(names)}. Name the one to read with compression, such as "
            "c23."
        )
    return wanted or "".join(names)
