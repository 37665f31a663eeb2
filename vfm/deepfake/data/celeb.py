"""Celeb-DF, versions 1 and 2 and Celeb-DF++, as published or cut into frames."""

from __future__ import annotations

import re
from pathlib import Path

from vfm.data.layouts import Reading
from vfm.deepfake.data.filenames import CELEB
from vfm.deepfake.data.files import Media, list_folders, read_videos
from vfm.deepfake.data.record import MAX_ABSENT, DeepfakeDataError, Item, group_items

TEST_LIST = "List_of_testing_videos.txt"

_REALS = ("celeb-real", "youtube-real")
_DEEPFAKES = "celeb-synthesis"
_KINDS = ("FaceSwap", "FaceReenact", "TalkingFace")


def find(root: Path) -> bool:
    """Whether a folder holds Celeb-DF."""
    return any(folder.name.lower() in (*_REALS, _DEEPFAKES) for folder in list_folders(root))


def read(root: Path, *, media: Media = "auto", lists: Path | None = None) -> Reading[Item]:
    """Read `Celeb-real`, `YouTube-real` and `Celeb-synthesis`, with folders of methods below it in Celeb-DF++.

    What the list of testing videos names is the test set. The rest has no split: part of it shows persons of the test
    set, and `assign_splits` decides what may be trained on.

    Raises:
        DeepfakeDataError: The list contradicts the folders, or names videos that are not there.
    """
    dataset = root.name if "celeb" in root.name.lower() else CELEB
    sources: list[tuple[Path, Item]] = []
    for folder in list_folders(root):
        if folder.name.lower() in _REALS:
            sources.append((folder, Item("", "real", "", dataset=dataset)))
        elif folder.name.lower() == _DEEPFAKES:
            kinds = [kind for kind in list_folders(folder) if kind.name in _KINDS]
            for method in [m for kind in kinds for m in list_folders(kind)] or [folder]:
                common = Item("", "fake", "", method=method.name, dataset=dataset)
                sources.append((method, common))
    items_of: dict[str, list[Item]] = {}
    for folder, common in sources:
        for item in read_videos(folder, media, common):
            # As the list names it: without `videos` or `frames` and without a suffix.
            name = f"{folder.relative_to(root).as_posix()}/{item.video}".lower()
            items_of.setdefault(name, []).append(item)
    path = (lists or root) / TEST_LIST
    if path.is_file():
        tested, notes = _read_test_list(path, root, items_of)
    elif lists is not None:
        raise DeepfakeDataError(f"{lists} has no {TEST_LIST}. Give the folder that holds it.")
    else:
        tested, notes = (
            set(),
            [
                f"{root} has no {TEST_LIST}, so nothing says which videos are its test set, and its splits have to be "
                "drawn. Copy the list there before results are compared with published ones."
            ],
        )
    items = [
        item._replace(split="test" if name in tested else "")
        for name, members in items_of.items()
        for item in members
    ]
    return group_items(items, notes)


def _read_test_list(
    path: Path, root: Path, items_of: dict[str, list[Item]]
) -> tuple[set[str], list[str]]:
    """Names of the videos that the list names, and a note on what is missing."""
    tested: set[str] = set()
    absent: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        digit, _, name = line.strip().replace("\\", "/").partition(" ")
        if digit not in ("0", "1") or not name:
            raise DeepfakeDataError(
                f"{path}, line {number}: '{line}' is not 0 or 1, a space and a video. Take the list as it is published."
            )
        parts = [part for part in name.strip().split("/") if part not in ("videos", "frames")]
        start = next((i for i, p in enumerate(parts) if p.lower() in (*_REALS, _DEEPFAKES)), 0)
        key = re.sub(r"\.\w+$", "", "/".join(parts[start:])).lower()
        if key not in items_of:
            absent.append(name)
            continue
        # The only list of the field where 1 is real.
        listed, label = ("real" if digit == "1" else "fake"), items_of[key][0].label
        if listed != label:
            raise DeepfakeDataError(
                f"{path}, line {number}: {name} is {listed} by its digit ({digit}; in this list 1 is real), but lies "
                f"in a folder of {label} videos. Take the list as it is published."
            )
        tested.add(key)
    if not absent:
        return tested, []
    listed_count = len(absent) + len(tested)
    note = f"{len(absent)} of the {listed_count} videos of {path} are not in {root}, such as {absent[0]}."
    if len(absent) > MAX_ABSENT * listed_count:
        raise DeepfakeDataError(
            f"{note} Complete the copy, since results on part of the test set do not compare."
        )
    return tested, [note]
