"""The JSON lists of DeepfakeBench and DF40."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.layouts import Reading
from vfm.data.splits import SPLITS
from vfm.deepfake.data.filenames import DFD, FORENSICS, origin
from vfm.deepfake.data.files import Files, beside, frames, read_json
from vfm.deepfake.data.record import DeepfakeDataError, Item, LabelName, group_items, natural

_LISTS = "dataset_json"
_COMPRESSIONS = ("raw", "c0", "c23", "c40")
_FORENSICS = {
    "FF-DF": "Deepfakes",
    "FF-F2F": "Face2Face",
    "FF-FS": "FaceSwap",
    "FF-NT": "NeuralTextures",
    "FF-FH": "FaceShifter",
    "FF-SH": "FaceShifter",
}


class Entry(NamedTuple):
    """A video of a list."""

    dataset: str
    key: str
    """What the list calls the label, such as FF-DF."""
    split: str
    compression: str
    video: str
    content: Mapping[str, Any]


def find_lists(root: Path) -> bool:
    """Whether a folder holds JSON lists of DeepfakeBench, or is one."""
    return any(_looks_so(read_json(path)) for path in _paths(root))


def read_lists(
    root: Path,
    *,
    compression: str | None = None,
    base: Path | None = None,
    labels: Mapping[str, LabelName] | None = None,
) -> Reading[Item]:
    """Read `{data set: {label: {split: [{compression:] {video: {"label", "frames", "masks"}}}}}`.

    A video that stands in several splits goes to the test set alone, or else to the validation set: these lists put the
    test videos of Celeb-DF into its training set, and validate on the test set.

    Args:
        root: A list, or the folder of the lists or of the frames.
        compression: Which to read, where a list has several.
        base: The folder that the paths of the frames start from; by default looked for at the root and above.
        labels: What names of labels mean that do not end in real or fake.

    Raises:
        DeepfakeDataError: A list is none, or its labels contradict each other.
    """
    entries: list[Entry] = []
    for path in _paths(root):
        content = read_json(path)
        # Other JSON files may lie beside the lists, but not in place of one that was named.
        if path == root or _looks_so(content):
            entries += _entries(_object(content, path, "the list"), path)
    entries = _of_compression(entries, compression, root)
    kept, notes = _first_split(entries)
    base_text = _base(root, base, kept).as_posix()
    files = Files()
    notes += _empty(kept, labels or {})
    items: dict[str, Item] = {}
    for entry in kept:
        for item in _items(entry, base_text, labels or {}, files):
            # FF-DF.json and its like all hold the same real videos.
            other = items.setdefault(item.path, item)
            if other.key != item.key or other.label != item.label:
                raise DeepfakeDataError(
                    f"{root}: {item.path} is in the videos '{'/'.join(other.key)}' and '{'/'.join(item.key)}'. "
                    "Read one of the lists alone."
                )
    return group_items(list(items.values()), notes)


def _paths(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    found = [path for place in (root, root / _LISTS) for path in sorted(place.glob("*.json"))]
    return [path for path in found if not path.name.startswith(".")]


def _looks_so(content: Any) -> bool:
    """Whether it is an object of objects of objects."""
    for _ in range(3):
        if not isinstance(content, dict) or not content:
            return False
        content = next(iter(content.values()))
    return isinstance(content, dict)


def _entries(content: Mapping[str, Any], path: Path) -> Iterator[Entry]:
    for dataset, labels in content.items():
        for key, splits in _object(labels, path, dataset).items():
            for name, videos in _object(splits, path, key).items():
                split = SPLIT_FOLDERS.get(name.lower())
                if split is None:
                    raise DeepfakeDataError(
                        f"{path}: '{dataset}' has the split '{name}' under '{key}'. Choices: train, val, test."
                    )
                for video, level, entry in _videos(_object(videos, path, name), path):
                    yield Entry(_dataset(dataset), key, split, level, video, entry)


def _videos(videos: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for name, entry in videos.items():
        found = _object(entry, path, name)
        if "frames" in found:
            yield name, "", found
        elif name in _COMPRESSIONS:
            for video, inner in found.items():
                yield video, name, _object(inner, path, video)
        else:
            raise DeepfakeDataError(
                f"{path}: the video '{name}' has no frames. Give a list as DeepfakeBench writes it."
            )


def _object(value: Any, path: Path, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DeepfakeDataError(
            f"{path}: '{name}' holds no object. Give a list as DeepfakeBench writes it: data set, label, split, video."
        )
    return value


def _dataset(name: str) -> str:
    return FORENSICS if name in (*_FORENSICS, "FaceShifter", FORENSICS) else name


def _of_compression(entries: list[Entry], wanted: str | None, root: Path) -> list[Entry]:
    there = sorted({entry.compression for entry in entries} - {""})
    if wanted is not None and wanted not in there:
        raise DeepfakeDataError(
            f"{root} has no videos of compression '{wanted}'. Choices: {', '.join(there) or 'none'}."
        )
    if wanted is None and len(there) > 1:
        raise DeepfakeDataError(
            f"{root} has videos of the compressions {', '.join(there)}. Name the one to read with compression, "
            "such as c23."
        )
    return [
        entry for entry in entries if entry.compression in ("", wanted or there[0] if there else "")
    ]


def _first_split(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """Each video in one split: test before val before train.

    Where test videos were listed for training the list made no training set, and the others have no split.
    """
    splits: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for entry in entries:
        # It has no official splits: these lists have all of it in each.
        splits[_video(entry)].add("test" if entry.dataset == DFD else entry.split)
    twice = [key for key, found in splits.items() if len(found) > 1]
    unsplit = {key[0] for key in twice if {"train", "test"} <= splits[key]}
    kept = {}
    for entry in entries:
        split = min(splits[_video(entry)], key=SPLITS[::-1].index)
        split = "" if entry.dataset in unsplit and split != "test" else split
        kept[_video(entry)] = entry._replace(split=split)
    if not twice:
        return list(kept.values()), []
    note = (
        f"{len(twice)} of {len(kept)} videos are in several splits of the lists, such as {'/'.join(twice[0])}. They "
        "count as test videos, or else as validation videos, alone."
    )
    left = f" The others of {', '.join(sorted(unsplit))} have no split yet." if unsplit else ""
    return list(kept.values()), [note + left]


def _video(entry: Entry) -> tuple[str, str, str]:
    return (entry.dataset, entry.key, entry.video)


def _empty(entries: Sequence[Entry], labels: Mapping[str, LabelName]) -> list[str]:
    found = [entry for entry in entries if not entry.content["frames"]]
    if not found:
        return []
    deepfakes = sum(_label(entry, labels) == "fake" for entry in found)
    return [
        f"{len(found)} videos of the lists have no frames ({len(found) - deepfakes} real, {deepfakes} fake), such as "
        f"{found[0].video}. Results leave them out: say so."
    ]


def _base(root: Path, base: Path | None, entries: Sequence[Entry]) -> Path:
    """The folder that the paths of the frames start from."""
    first = next((str(path) for entry in entries for path in entry.content["frames"]), None)
    if first is None:
        raise DeepfakeDataError(f"{root} lists no frames at all. Make the lists again.")
    start = root.parent if root.is_file() else root
    above = [start, *start.absolute().parents[:3]]
    places = [base] if base is not None else [p for a in above for p in (a, a / "rgb")]
    for place in places:
        if (place / _clean(first)).exists():
            return place.absolute()
    tried = ", ".join(map(str, places))
    raise DeepfakeDataError(
        f"The first frame of {root}, {_clean(first)}, is not in {tried}. Name the folder that the paths "
        "start from with base."
    )


def _clean(path: str) -> str:
    """A path as the lists write it, some with the slashes of Windows and a dot before them."""
    return path.replace("\\", "/").removeprefix("./")


def _items(
    entry: Entry, base: str, labels: Mapping[str, LabelName], files: Files
) -> Iterator[Item]:
    label = _label(entry, labels)
    known = origin(entry.dataset, entry.video)
    method = _method(entry.key) if label == "fake" else ""
    source = known.source if label == "fake" else ""
    paths = sorted((_clean(str(path)) for path in entry.content["frames"]), key=natural)
    masks = {_end(_clean(str(path))): _clean(str(path)) for path in entry.content.get("masks", [])}
    clip = frames(base, paths, entry.video)
    for path, number in zip(clip.files, clip.numbers, strict=True):
        listed = masks.get(_end(path), "")
        mask = f"{base}/{listed}" if listed else beside(path, "masks", files)
        yield Item(
            path,
            label,
            entry.video,
            known.identities,
            method,
            entry.dataset,
            entry.split,
            entry.compression,
            mask if label == "fake" else "",
            source,
            number,
            beside(path, "landmarks", files),
        )


def _end(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


def _label(entry: Entry, labels: Mapping[str, LabelName]) -> LabelName:
    written = str(entry.content.get("label", entry.key))
    if written != entry.key:
        raise DeepfakeDataError(
            f"The video '{entry.video}' of {entry.dataset} stands under '{entry.key}', but its label is '{written}'. "
            "A video has one label: mend the list."
        )
    if entry.key in labels:
        return labels[entry.key]
    if entry.key in _FORENSICS:
        return "fake"
    # By its end alone: whichisreal_Fake is fake.
    end = re.search(r"(?:^|[-_])(real|fake)[AB]?$", entry.key, re.IGNORECASE)
    if end is None:
        raise DeepfakeDataError(
            f"Nothing says whether '{entry.key}' of {entry.dataset} is real or fake: it ends in neither. "
            f'Say so with labels={{"{entry.key}": "fake"}}.'
        )
    return "real" if end[1].lower() == "real" else "fake"


def _method(key: str) -> str:
    name = re.sub(r"([-_])fake([AB]?)$", r"\1\2", key, flags=re.IGNORECASE)
    return _FORENSICS.get(key, name.rstrip("-_") or key)
