"""Folders called real and fake, with images, videos or frames; also those of ForenSynths and GenImage."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.layouts import Reading
from vfm.deepfake.data.filenames import CELEB, FORENSICS, parse_name
from vfm.deepfake.data.files import (
    get_stem,
    is_image,
    is_video,
    make_frames,
    number_frames,
    walk_media,
)
from vfm.deepfake.data.record import FAKE, DeepfakeDataError, Item, LabelName, group_items

Grouping = Literal["auto", "folder", "still", "name"]
"""What images in a folder below that of a label are: frames of one video, images of their own, or frames of the videos
that their names begin with; `auto` takes a folder of numbered images for a video."""

_WORDS: dict[str, LabelName] = {
    **dict.fromkeys(("real", "reals", "original", "originals", "authentic", "pristine"), "real"),
    **dict.fromkeys(("0_real", "nature"), "real"),
    **dict.fromkeys(("fake", "fakes", "forged", "manipulated", "generated", "synthetic"), "fake"),
    **dict.fromkeys(("1_fake", "ai"), "fake"),
}
_NUMBERED = re.compile(r"(frame|img|image)?[-_ ]?\d+", re.IGNORECASE)
_FRAME_END = re.compile(r"[-_ ]?(?:frame|img|image|f)?[-_ ]?\d+$", re.IGNORECASE)


def find(root: Path) -> bool:
    """Whether a folder has folders called real or fake, or otherwise so, in it or below."""
    return any(part.casefold() in _WORDS for parts, _ in walk_media(root) for part in parts)


def read(
    root: Path,
    *,
    grouping: Grouping = "auto",
    labels: Mapping[str, LabelName] | None = None,
) -> Reading[Item]:
    """Read folders whose names say the label, by whole names: `unreal` is no label.

    Folders of splits may stand above or below those of the labels. Folders above, otherwise, name the data set; those
    below that of the fakes name the method.

    Raises:
        DeepfakeDataError: A path says both labels, or two videos have one name.
    """
    items, notes = _read_tree(root, grouping, labels or {})
    _refuse_equal_names(items, root)
    notes += _warn_of_flat_frames(items) if grouping == "auto" else []
    for dataset in (FORENSICS, CELEB):
        deepfakes = {item.video for item in items if item.label == FAKE}
        if deepfakes and all(parse_name(dataset, video)[1] for video in deepfakes):
            for index, item in enumerate(items):
                identities, source = parse_name(dataset, item.video)
                items[index] = item._replace(identities=identities, source=source)
            note = "The videos are named as in {}: persons and sources are taken from their names."
            return group_items(items, [*notes, note.format(dataset)])
    return group_items(items, notes)


def _read_tree(
    root: Path, grouping: Grouping, labels: Mapping[str, LabelName]
) -> tuple[list[Item], list[str]]:
    words = _WORDS | {name.casefold(): label for name, label in labels.items()}
    items: list[Item] = []
    unlabeled: list[str] = []
    num_clips = 0
    for parts, names in walk_media(root):
        common, below = _describe_folder(root, parts, words)
        if common is None:
            unlabeled += ["/".join((*parts, name)) for name in names]
            continue
        paths = ["/".join((root.as_posix(), *parts, name)) for name in names]
        images = [path for path in paths if is_image(path)]
        items += [
            _name_video(common, below, get_stem(p))._replace(path=p) for p in paths if is_video(p)
        ]
        if images and below and _are_frames(images, grouping):
            num_clips += 1
            items += make_frames(images, _name_video(common, below[:-1], below[-1]))
        elif grouping == "name":
            # Frames of the videos that their names begin with: 000_003_12.png is one of 000_003.
            groups: dict[str, list[str]] = defaultdict(list)
            for path in images:
                groups[_FRAME_END.sub("", get_stem(path)) or get_stem(path)].append(path)
            for video, frames in groups.items():
                items += make_frames(frames, _name_video(common, below, video))
        else:
            # A still's name is unique in the root: numbers recur from folder to folder.
            for path in images:
                video = path.removeprefix(f"{root.as_posix()}/")
                items.append(_name_video(common, below, "")._replace(path=path, video=video))
    notes = []
    if unlabeled:
        notes.append(
            f"{len(unlabeled)} images and videos in {root} lie in no folder called real or fake, such as "
            f"{unlabeled[0]}; they are left out."
        )
    if num_clips and grouping == "auto":
        notes.append(
            f"{num_clips} folders of numbered images in {root} count as one video each. If each image is one of its "
            "own, set grouping to 'still'."
        )
    return items, notes


def read_generated(root: Path, *, labels: Mapping[str, LabelName] | None = None) -> Reading[Item]:
    """Read images by generator: `<generator>/.../0_real` and `1_fake`, or `<generator>/<split>/nature` and `ai`.

    Each generator is a data set with its own real images. What GenImage calls val is what it tests on, so it is test.
    """
    reading = read(root, grouping="still", labels=labels)
    folders = {item.path.split("/")[-2].lower() for item in reading.entries}
    if "val" not in reading.splits or "test" in reading.splits or not folders <= {"ai", "nature"}:
        return reading
    items = [item._replace(split=item.split.replace("val", "test")) for item in reading.entries]
    note = "GenImage is tested on what it calls val: it is the test set here, and a validation set is to be drawn."
    return group_items(items, [*reading.notes, note])


def _describe_folder(
    root: Path, parts: tuple[str, ...], words: Mapping[str, LabelName]
) -> tuple[Item | None, tuple[str, ...]]:
    """What the files of a folder have in common by the names above them, and the folders below that of the label."""
    positions = [i for i, part in enumerate(parts) if part.casefold() in words]
    if not positions:
        return None, ()
    first, last = positions[0], positions[-1]
    labels = {words[parts[i].casefold()] for i in positions}
    if len(labels) > 1:
        raise DeepfakeDataError(
            f"The folder {'/'.join(parts)} in {root} says both real and fake: '{parts[first]}' and '{parts[last]}'. "
            "Rename one of them."
        )
    before, below = parts[:first], parts[first + 1 :]
    named = [part for part in (*before, *below[:1]) if part.lower() in SPLIT_FOLDERS]
    splits = {SPLIT_FOLDERS[part.lower()] for part in named}
    if len(splits) > 1:
        raise DeepfakeDataError(
            f"The folder {'/'.join(parts)} in {root} names two splits: {' and '.join(named)}. Rename one of them."
        )
    if below and below[0] in named:
        below = below[1:]
    # The folders above stand in `video` until the video is named.
    dataset, *above = [part for part in before if part not in named] or [""]
    split = splits.pop() if splits else ""
    return Item("", labels.pop(), "/".join(above), (), "", dataset, split), below


def _name_video(common: Item, kinds: Sequence[str], name: str) -> Item:
    """The item of a video, whose method or whose folders are the kinds."""
    method = ""
    if common.label == FAKE:
        method, kinds = "/".join(kinds) or common.dataset or FAKE, ()
    above = (common.video,) if common.video else ()
    return common._replace(method=method, video="/".join((*above, *kinds, name)))


def _are_frames(images: Sequence[str], grouping: Grouping) -> bool:
    if grouping == "auto":
        numbered = all(_NUMBERED.fullmatch(get_stem(path)) for path in images)
        return numbered and number_frames(images) is not None
    return grouping == "folder"


def _refuse_equal_names(items: Sequence[Item], root: Path) -> None:
    """Refuse two videos of one name in one split; in two splits it is a leak, which the splits report."""
    first: dict[tuple[str, ...], str] = {}
    for item in items:
        path = item.path if item.frame < 0 else item.path.rpartition("/")[0]
        other = first.setdefault((*item.key, item.split), path)
        if other != path:
            raise DeepfakeDataError(
                f"{root} has two videos called '{item.video}': {other} and {path}. If they are one, as a file and as "
                "frames, keep one of them; if not, rename one."
            )


def _warn_of_flat_frames(items: Sequence[Item]) -> list[str]:
    """A note where stills seem to be frames of videos: few beginnings of names, each many times."""
    stills = [get_stem(item.path) for item in items if item.frame < 0 and is_image(item.path)]
    beginnings = [_FRAME_END.sub("", name) for name in stills]
    groups = {name for name in beginnings if re.search(r"\d", name)}
    count = sum(name in groups for name in beginnings)
    if not groups or count < 2 * len(groups):
        return []
    return [
        f"{count} images have names that begin alike, such as {stills[beginnings.index(min(groups))]}, as frames of "
        f"{len(groups)} videos have. They count as images of their own. If they are frames, set grouping to 'name', "
        "since frames of one video must not be in two splits."
    ]
