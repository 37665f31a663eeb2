"""Celeb-DF, versions 1 and 2 and Celeb-DF++, as published or cut into frames."""

from __future__ import annotations

import re
from pathlib import Path

from vfm.data.layouts import Reading
from vfm.deepfake.data.filenames import celebrities
from vfm.deepfake.data.files import Clip, Files, Media, clip_items, clips, folders
from vfm.deepfake.data.record import MAX_ABSENT, DeepfakeDataError, Item, group_items

TEST_LIST = "List_of_testing_videos.txt"

_REALS = ("celeb-real", "youtube-real")
_DEEPFAKES = "celeb-synthesis"
_KINDS = ("FaceSwap", "FaceReenact", "TalkingFace")


def find_celeb(root: Path) -> bool:
    """Whether a folder holds Celeb-DF."""
    return any(folder.name.lower() in (*_REALS, _DEEPFAKES) for folder in folders(root))


def read_celeb(root: Path, *, media: Media = "auto", lists: Path | None = None) -> Reading[Item]:
    """Read `Celeb-real`, `YouTube-real` and `Celeb-synthesis`.

    What the list of testing videos names is the test set. The rest has no split: part of it shows persons of the test
    set, and `assign_splits` decides what may be trained on.

    Args:
        root: The folder of the three.
        media: Videos or frames.
        lists: Folder of the list of testing videos; by default the root.

    Raises:
        DeepfakeDataError: The list contradicts the folders, or names videos that are not there.
    """
    there = {folder.name.lower(): folder for folder in folders(root)}
    files = Files()
    found: dict[str, list[Item]] = {}
    for name in _REALS:
        for clip in clips(there[name], media) if name in there else []:
            _add(found, there[name], clip, _like(root, clip, ""), files)
    for folder, method in _methods(there[_DEEPFAKES]) if _DEEPFAKES in there else []:
        for clip in clips(folder, media):
            _add(found, folder, clip, _like(root, clip, method), files)
    path = (lists or root) / TEST_LIST
    if not path.is_file():
        if lists is not None:
            raise DeepfakeDataError(f"{lists} has no {TEST_LIST}. Give the folder that holds it.")
        return group_items(_flat(found), [_no_list(root)])
    tested, notes = _tested(path, root, found)
    items = [
        item._replace(split="test") if name in tested else item
        for name, members in found.items()
        for item in members
    ]
    return group_items(items, notes)


def _like(root: Path, clip: Clip, method: str) -> Item:
    known = celebrities(clip.name)
    dataset = root.name if "celeb" in root.name.lower() else "Celeb-DF"
    if method:
        return Item("", "fake", clip.name, known.identities, method, dataset, source=known.source)
    return Item("", "real", clip.name, known.identities, dataset=dataset)


def _methods(folder: Path) -> list[tuple[Path, str]]:
    """Folders of fakes with their methods: the folder itself, or below those of three kinds in Celeb-DF++."""
    kinds = [place for place in folders(folder) if place.name in _KINDS]
    return [(m, m.name) for kind in kinds for m in folders(kind)] or [(folder, folder.name)]


def _add(found: dict[str, list[Item]], folder: Path, clip: Clip, like: Item, files: Files) -> None:
    # As the list writes it: the folders that it names, without `videos` or `frames` and without a suffix.
    parts = folder.parts
    start = next(i for i, part in enumerate(parts) if part.lower() in (*_REALS, _DEEPFAKES))
    found["/".join((*parts[start:], clip.name)).lower()] = clip_items(clip, like, files)


def _flat(found: dict[str, list[Item]]) -> list[Item]:
    return [item for items in found.values() for item in items]


def _tested(path: Path, root: Path, found: dict[str, list[Item]]) -> tuple[set[str], list[str]]:
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
        key = _key(name)
        if key not in found:
            absent.append(name)
            continue
        # The only list of the field where 1 is real.
        listed, label = ("real" if digit == "1" else "fake"), found[key][0].label
        if listed != label:
            raise DeepfakeDataError(
                f"{path}, line {number}: {name} is {listed} by its digit ({digit}; in this list 1 is real), but lies "
                f"in a folder of {label} videos. Take the list as it is published."
            )
        tested.add(key)
    if not absent:
        return tested, []
    said = f"{len(absent)} of the {len(absent) + len(tested)} videos of {path} are not in {root}, such as {absent[0]}."
    if len(absent) > MAX_ABSENT * (len(absent) + len(tested)):
        raise DeepfakeDataError(
            f"{said} Complete the copy, since results on part of the test set do not compare."
        )
    return tested, [said]


def _key(name: str) -> str:
    parts = [part for part in name.strip().split("/") if part not in ("videos", "frames")]
    start = next((i for i, p in enumerate(parts) if p.lower() in (*_REALS, _DEEPFAKES)), 0)
    return re.sub(r"\.\w+$", "", "/".join(parts[start:])).lower()


def _no_list(root: Path) -> str:
    return (
        f"{root} has no {TEST_LIST}, so nothing says which videos are its test set, and its splits have to be drawn. "
        "Copy the list there before results are compared with published ones."
    )
