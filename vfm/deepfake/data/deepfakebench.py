"""DeepfakeBench and DF40: their JSON lists of videos and frames."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.layouts import Reading
from vfm.data.splits import SPLITS
from vfm.deepfake.data.filenames import DFD, FORENSICS, parse_name
from vfm.deepfake.data.files import (
    add_masks_and_landmarks,
    choose_compression,
    get_stem,
    make_frames,
    read_json,
)
from vfm.deepfake.data.record import DeepfakeDataError, Item, LabelName, group_items

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


class _Entry(NamedTuple):
    """A video of a list."""

    dataset: str
    key: str
    """What the list calls the label, such as FF-DF."""
    video: str
    split: str
    compression: str
    content: Mapping[str, Any]

    @property
    def name(self) -> tuple[str, str, str]:
        return self[:3]


def find(root: Path) -> bool:
    """Whether a folder holds JSON lists of DeepfakeBench, or is one."""
    return any(_is_list(read_json(path)) for path in _list_paths(root))


def read(
    root: Path,
    *,
    compression: str | None = None,
    base: Path | None = None,
    labels: Mapping[str, LabelName] | None = None,
) -> Reading[Item]:
    """Read `{data set: {label: {split: [{compression:] {video: {"label", "frames", "masks"}}}}}`.

    A video that stands in several splits goes to the test set alone, or else to the validation set: these lists put the
    test videos of Celeb-DF into its training set, and validate on the test set.

    Raises:
        DeepfakeDataError: A list is none, or its labels contradict each other.
    """
    entries: list[_Entry] = []
    for path in _list_paths(root):
        content = read_json(path)
        # Other JSON files may lie beside the lists, but not in place of one that was named.
        if path == root or _is_list(content):
            entries += _read_entries(_require_object(content, path, "the list"), path)
    stated = (entry.compression for entry in entries if entry.compression)
    chosen = ("", choose_compression(stated, compression, root))
    entries, notes = _resolve_splits([e for e in entries if e.compression in chosen])
    start = _find_base(root, base, entries).as_posix()
    empty = [entry for entry in entries if not entry.content["frames"]]
    if empty:
        num_fakes = sum(_read_label(entry, labels or {}) == "fake" for entry in empty)
        notes.append(
            f"{len(empty)} videos of the lists have no frames ({len(empty) - num_fakes} real, {num_fakes} fake), such "
            f"as {empty[0].video}. Results leave them out: say so."
        )
    items: dict[str, Item] = {}
    for entry in entries:
        for item in _make_items(entry, start, labels or {}):
            # FF-DF.json and its like all hold the same real videos.
            other = items.setdefault(item.path, item)
            if other.key != item.key or other.label != item.label:
                raise DeepfakeDataError(
                    f"{root}: {item.path} is in the videos '{'/'.join(other.key)}' and '{'/'.join(item.key)}'. "
                    "Read one of the lists alone."
                )
    return group_items(items.values(), notes)


def _list_paths(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    paths = [path for folder in (root, root / _LISTS) for path in sorted(folder.glob("*.json"))]
    return [path for path in paths if not path.name.startswith(".")]


def _is_list(content: Any) -> bool:
    """Whether it is an object of objects of objects."""
    for _ in range(3):
        if not isinstance(content, dict) or not content:
            return False
        content = next(iter(content.values()))
    return isinstance(content, dict)


def _read_entries(content: Mapping[str, Any], path: Path) -> Iterator[_Entry]:
    for dataset, labels in content.items():
        name = FORENSICS if dataset in (*_FORENSICS, "FaceShifter") else dataset
        for key, splits in _require_object(labels, path, dataset).items():
            for folder, videos in _require_object(splits, path, key).items():
                split = SPLIT_FOLDERS.get(folder.lower())
                if split is None:
                    raise DeepfakeDataError(
                        f"{path}: '{dataset}' has the split '{folder}' under '{key}'. Choices: train, val, test."
                    )
                for video, level, entry in _read_videos(
                    _require_object(videos, path, folder), path
                ):
                    yield _Entry(name, key, video, split, level, entry)


def _read_videos(
    videos: Mapping[str, Any], path: Path
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for name, value in videos.items():
        entry = _require_object(value, path, name)
        if "frames" in entry:
            yield name, "", entry
        elif name in _COMPRESSIONS:
            for video, inner in entry.items():
                yield video, name, _require_object(inner, path, video)
        else:
            raise DeepfakeDataError(
                f"{path}: the video '{name}' has no frames. Give a list as DeepfakeBench writes it."
            )


def _require_object(value: Any, path: Path, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DeepfakeDataError(
            f"{path}: '{name}' holds no object. Give a list as DeepfakeBench writes it: data set, label, split, video."
        )
    return value


def _resolve_splits(entries: list[_Entry]) -> tuple[list[_Entry], list[str]]:
    """Each video in one split, test before val before train, and a note where the lists have it in several.

    Where test videos were listed for training the list made no training set, and the others have no split.
    """
    splits: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for entry in entries:
        # DeepFakeDetection has no official splits: these lists have all of it in each.
        splits[entry.name].add("test" if entry.dataset == DFD else entry.split)
    repeated = [name for name in splits if len(splits[name]) > 1]
    unsplit = {name[0] for name in repeated if {"train", "test"} <= splits[name]}
    resolved = {}
    for entry in entries:
        split = max(splits[entry.name], key=SPLITS.index)
        split = "" if entry.dataset in unsplit and split != "test" else split
        resolved[entry.name] = entry._replace(split=split)
    if not repeated:
        return list(resolved.values()), []
    note = (
        f"{len(repeated)} of {len(resolved)} videos are in several splits of the lists, such as "
        f"{'/'.join(repeated[0])}. They count as test videos, or else as validation videos, alone."
    )
    if unsplit:
        note += f" The others of {', '.join(sorted(unsplit))} have no split yet."
    return list(resolved.values()), [note]


def _find_base(root: Path, base: Path | None, entries: Sequence[_Entry]) -> Path:
    """The folder that the paths of the frames start from."""
    first = next((str(path) for entry in entries for path in entry.content["frames"]), None)
    if first is None:
        raise DeepfakeDataError(f"{root} lists no frames at all. Make the lists again.")
    first = _clean(first)
    start = root.parent if root.is_file() else root
    above = [start, *start.absolute().parents[:3]]
    folders = [base] if base is not None else [f for a in above for f in (a, a / "rgb")]
    for folder in folders:
        if (folder / first).exists():
            return folder.absolute()
    raise DeepfakeDataError(
        f"The first frame of {root}, {first}, is not in {', '.join(map(str, folders))}. Name the folder that the paths "
        "start from with base."
    )


def _clean(path: str) -> str:
    """A path as the lists write it, some with the slashes of Windows and a dot before them."""
    return path.replace("\\", "/").removeprefix("./")


def _make_items(entry: _Entry, base: str, labels: Mapping[str, LabelName]) -> list[Item]:
    label = _read_label(entry, labels)
    identities, source = parse_name(entry.dataset, entry.video)
    method = ""
    if label == "fake":
        name = re.sub(r"([-_])fake([AB]?)$", r"\1\2", entry.key, flags=re.IGNORECASE)
        method = _FORENSICS.get(entry.key, name.rstrip("-_") or entry.key)
    common = Item(
        *("", label, entry.video, identities, method, entry.dataset, entry.split),
        compression=entry.compression,
        source=source if method else "",
    )
    paths, masks = (
        [f"{base}/{_clean(str(path))}" for path in entry.content.get(kind, [])]
        for kind in ("frames", "masks")
    )
    mask_of = {get_stem(path): path for path in masks}
    items = make_frames(paths, common)
    if method:
        items = [item._replace(mask=mask_of.get(get_stem(item.path), "")) for item in items]
    return add_masks_and_landmarks(items)


def _read_label(entry: _Entry, labels: Mapping[str, LabelName]) -> LabelName:
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
