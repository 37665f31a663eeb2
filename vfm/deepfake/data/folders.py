"""Folders called real and fake, with images, videos or frames; also those of ForenSynths and GenImage."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.layouts import Reading
from vfm.deepfake.data.filenames import Origin, celebrities, forensics
from vfm.deepfake.data.files import frame_numbers, frames, is_image, is_video, stem, walk
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


class Place(NamedTuple):
    """What the names of folders say about the files in one."""

    path: str
    label: LabelName
    split: str
    before: tuple[str, ...]
    """Folders above that of the label, without that of a split."""
    after: tuple[str, ...]
    """Folders below it."""
    names: list[str]


def find_plain(root: Path) -> bool:
    """Whether a folder has folders called real or fake, or otherwise so, in it or below."""
    return any(_labels(parts, _WORDS) for parts, _ in walk(root))


def read_plain(
    root: Path,
    *,
    grouping: Grouping = "auto",
    labels: Mapping[str, LabelName] | None = None,
) -> Reading[Item]:
    """Read folders whose names say the label, by whole names: `unreal` is no label.

    Folders of splits may stand above or below those of the labels. Folders above, otherwise, name the data set; those
    below that of the fakes name the method.

    Args:
        root: The folder of all.
        grouping: Of images into videos.
        labels: What other folders mean, such as {"deepfakes": "fake"}.

    Raises:
        DeepfakeDataError: A path says both labels, or two videos have one name.
    """
    words = _WORDS | {name.casefold(): label for name, label in (labels or {}).items()}
    places, loose = _places(root, words)
    items: list[Item] = []
    notes = _loose_note(root, loose)
    folders = 0
    for place in places:
        found, grouped = _items(place, root, grouping)
        items += found
        folders += grouped
    _check_names(items, root)
    if folders and grouping == "auto":
        notes.append(
            f"{folders} folders of numbered images in {root} count as one video each. If each image is one of its own, "
            "set grouping to 'still'."
        )
    notes += _flat_frames(items) if grouping == "auto" else []
    return _with_origins(items, notes)


def read_generated(root: Path, *, labels: Mapping[str, LabelName] | None = None) -> Reading[Item]:
    """Read images by generator: `<generator>/.../0_real` and `1_fake`, or `<generator>/<split>/nature` and `ai`.

    Each generator is a data set with its own real images. What GenImage calls val is what it tests on, so it is test.

    Args:
        root: The folder of the generators, or that of one.
        labels: As for `read_plain`.
    """
    reading = read_plain(root, grouping="still", labels=labels)
    splits = {item.split for item in reading.entries}
    named = {item.path.split("/")[-2].lower() for item in reading.entries}
    if "val" not in splits or "test" in splits or not named <= {"ai", "nature"}:
        return reading
    items = [
        item._replace(split="test") if item.split == "val" else item for item in reading.entries
    ]
    note = "GenImage is tested on what it calls val: it is the test set here, and a validation set is to be drawn."
    return group_items(items, [*reading.notes, note])


def _labels(parts: tuple[str, ...], words: Mapping[str, LabelName]) -> list[int]:
    return [i for i, part in enumerate(parts) if part.casefold() in words]


def _places(root: Path, words: Mapping[str, LabelName]) -> tuple[list[Place], list[str]]:
    places: list[Place] = []
    loose: list[str] = []
    for parts, names in walk(root):
        where = _labels(parts, words)
        if not where:
            loose += ["/".join((*parts, name)) for name in names]
            continue
        found = {words[parts[i].casefold()] for i in where}
        if len(found) > 1:
            raise DeepfakeDataError(
                f"The folder {'/'.join(parts)} in {root} says both real and fake: '{parts[where[0]]}' and "
                f"'{parts[where[-1]]}'. Rename one of them."
            )
        places.append(_place(root, parts, where[0], found.pop(), names))
    return places, loose


def _place(
    root: Path, parts: tuple[str, ...], at: int, label: LabelName, names: list[str]
) -> Place:
    before, after = parts[:at], parts[at + 1 :]
    splits = [part for part in (*before, *after[:1]) if part.lower() in SPLIT_FOLDERS]
    named = {SPLIT_FOLDERS[part.lower()] for part in splits}
    if len(named) > 1:
        raise DeepfakeDataError(
            f"The folder {'/'.join(parts)} in {root} names two splits: {' and '.join(splits)}. Rename one of them."
        )
    if after and after[0] in splits:
        after = after[1:]
    above = tuple(part for part in before if part not in splits)
    path = "/".join((root.as_posix(), *parts))
    return Place(path, label, named.pop() if named else "", above, after, names)


def _items(place: Place, root: Path, grouping: Grouping) -> tuple[list[Item], int]:
    """The items of a folder, and how many folders were taken for a video."""
    images = [name for name in place.names if is_image(name)]
    items = [
        _item(place, f"{place.path}/{name}", stem(name), place.after)
        for name in place.names
        if is_video(name)
    ]
    if images and _is_clip(place, images, grouping):
        clip = frames(place.path, images, place.after[-1])
        like = _item(place, "", clip.name, place.after[:-1])
        pairs = zip(clip.files, clip.numbers, strict=True)
        return [*items, *(like._replace(path=path, frame=n) for path, n in pairs)], 1
    if grouping == "name":
        return items + list(_named(place, images)), 0
    for name in images:
        path = f"{place.path}/{name}"
        # A still's name is unique in the root: numbers recur from folder to folder.
        video = path.removeprefix(f"{root.as_posix()}/")
        items.append(_item(place, path, "", place.after)._replace(video=video))
    return items, 0


def _item(place: Place, path: str, name: str, kinds: tuple[str, ...]) -> Item:
    dataset = place.before[0] if place.before else ""
    method = ""
    if place.label == FAKE:
        method, kinds = "/".join(kinds) or dataset or FAKE, ()
    video = "/".join((*place.before[1:], *kinds, name))
    return Item(path, place.label, video, (), method, dataset, place.split)


def _is_clip(place: Place, images: list[str], grouping: Grouping) -> bool:
    if not place.after or grouping in ("still", "name"):
        return False
    numbered = all(_NUMBERED.fullmatch(stem(name)) for name in images)
    return grouping == "folder" or (numbered and frame_numbers(images) is not None)


def _named(place: Place, images: list[str]) -> Iterator[Item]:
    """Images as the frames of the videos that their names begin with: 000_003_12.png is one of 000_003."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in images:
        groups[_FRAME_END.sub("", stem(name)) or stem(name)].append(name)
    for video, names in groups.items():
        clip = frames(place.path, names, video)
        like = _item(place, "", video, place.after)
        for path, number in zip(clip.files, clip.numbers, strict=True):
            yield like._replace(path=path, frame=number)


def _check_names(items: list[Item], root: Path) -> None:
    """Refuse two videos of one name in one split; in two splits it is a leak, which the splits report."""
    first: dict[tuple[str, ...], str] = {}
    for item in items:
        place = item.path if item.frame < 0 else item.path.rpartition("/")[0]
        other = first.setdefault((*item.key, item.split), place)
        if other != place:
            raise DeepfakeDataError(
                f"{root} has two videos called '{item.video}': {other} and {place}. If they are one, as a file and as "
                "frames, keep one of them; if not, rename one."
            )


def _loose_note(root: Path, loose: list[str]) -> list[str]:
    if not loose:
        return []
    return [
        f"{len(loose)} images and videos in {root} lie in no folder called real or fake, such as {loose[0]}; "
        "they are left out."
    ]


def _flat_frames(items: list[Item]) -> list[str]:
    """A note where stills seem to be frames of videos: few beginnings of names, each many times."""
    stills = [stem(item.path) for item in items if item.frame < 0 and is_image(item.path)]
    begun = [_FRAME_END.sub("", name) for name in stills]
    groups = {name for name in begun if re.search(r"\d", name)}
    members = sum(name in groups for name in begun)
    if not groups or members < 2 * len(groups):
        return []
    return [
        f"{members} images have names that begin alike, such as {stills[begun.index(min(groups))]}, as frames of "
        f"{len(groups)} videos have. They count as images of their own. If they are frames, set grouping to 'name', "
        "since frames of one video must not be in two splits."
    ]


def _with_origins(items: list[Item], notes: list[str]) -> Reading[Item]:
    """Add persons and sources where every fake is named as in FaceForensics++, or as in Celeb-DF."""
    rules: dict[str, Callable[[str], Origin]] = {
        "FaceForensics++": forensics,
        "Celeb-DF": celebrities,
    }
    deepfakes = {item.video for item in items if item.label == FAKE}
    for name, rule in rules.items():
        if deepfakes and all(rule(video).source for video in deepfakes):
            named = [_replaced(item, rule(item.video)) for item in items]
            note = f"The videos are named as in {name}: persons and sources are taken from their names."
            return group_items(named, [*notes, note])
    return group_items(items, notes)


def _replaced(item: Item, origin: Origin) -> Item:
    return item._replace(identities=origin.identities, source=origin.source)
