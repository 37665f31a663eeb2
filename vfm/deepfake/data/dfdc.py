"""The Deepfake Detection Challenge, its preview, and FFIW, as published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.layouts import Reading
from vfm.data.tables import Table, read_table
from vfm.deepfake.data.files import Files, Media, clip_items, clips, folders, read_object, stem
from vfm.deepfake.data.record import DeepfakeDataError, Item, LabelName, group_items

DFDC = "DFDC"
DFDCP = "DFDCP"
FFIW = "FFIW"

_METADATA = "metadata.json"
_TEST_LABELS = "labels.csv"
_PREVIEW = "dataset.json"
_RELEASE = "FFIW10K-v1-release"
_NO_PERSONS = (
    "{} does not say whom a video shows: splits keep a real video and the fakes made from it together, "
    "not all of a person."
)


def find_challenge(root: Path) -> bool:
    """Whether a folder holds DFDC: labels of its test set, or parts of its training set."""
    return bool(_test_folders(root) or _parts(root))


def read_challenge(root: Path) -> Reading[Item]:
    """Read the parts of the training set by their metadata.json, and the test set by its labels.csv (1 is fake).

    Raises:
        DeepfakeDataError: A label is none.
    """
    items = []
    for folder in _parts(root):
        content = read_object(folder / _METADATA, "an object with an entry for each video")
        items += [_trained(folder, name, entry) for name, entry in content.items()]
    for folder in _test_folders(root):
        items += _tested(folder)
    return group_items(items, [_NO_PERSONS.format(DFDC)])


def find_preview(root: Path) -> bool:
    """Whether a folder holds the preview of DFDC."""
    return (root / _PREVIEW).is_file()


def read_preview(root: Path) -> Reading[Item]:
    """Read dataset.json of the preview: folders of methods and of originals, with label and split of each video.

    Raises:
        DeepfakeDataError: An entry has no label or split, or a label contradicts the folder.
    """
    path = root / _PREVIEW
    content = read_object(path, "an object with an entry for each video")
    return group_items([_previewed(root, path, *pair) for pair in content.items()])


def find_ffiw(root: Path) -> bool:
    """Whether a folder holds FFIW."""
    place = _release(root)
    return (place / "source").is_dir() and (place / "target").is_dir()


def read_ffiw(root: Path, *, media: Media = "auto") -> Reading[Item]:
    """Read FFIW: `source` is real, `target` is fake, each with train, val and test."""
    labels: dict[str, LabelName] = {"source": "real", "target": "fake"}
    files = Files()
    items = []
    for name, label in labels.items():
        for folder in folders(_release(root) / name):
            split = SPLIT_FOLDERS.get(folder.name.lower())
            if split is None:
                continue
            for clip in clips(folder, media):
                # Each split counts its videos from the start.
                video = f"{split}/{clip.name}"
                like = Item("", label, video, (), FFIW if label == "fake" else "", FFIW, split)
                items += clip_items(clip, like, files)
    return group_items(items, [_NO_PERSONS.format(FFIW)])


def _parts(root: Path) -> list[Path]:
    places = [root, *folders(root), *folders(root / "train")]
    return [place for place in places if (place / _METADATA).is_file()]


def _test_folders(root: Path) -> list[Path]:
    return [place for place in (root, root / "test") if (place / _TEST_LABELS).is_file()]


def _trained(folder: Path, name: str, entry: Any) -> Item:
    where = folder / _METADATA
    if not isinstance(entry, dict):
        raise DeepfakeDataError(f"{where}: the entry of {name} is no object. Download it again.")
    label = _word(entry.get("label"), f"{where}, {name}")
    original = entry.get("original") or ""
    split = SPLIT_FOLDERS.get(str(entry.get("split", "train")).lower(), "train")
    return _challenge_item(folder / name, label, split, stem(original) if original else "")


def _tested(folder: Path) -> list[Item]:
    path = folder / _TEST_LABELS
    table = _table(path)
    place = folder / "videos" if (folder / "videos").is_dir() else folder
    labels = {"0": "REAL", "1": "FAKE"}
    items = []
    for index, row in enumerate(table.rows):
        cell = row["label"].strip()
        label = _word(labels.get(cell, cell), table.where(index))
        items.append(_challenge_item(place / row["filename"].strip(), label, "test", ""))
    return items


def _challenge_item(path: Path, label: LabelName, split: str, source: str) -> Item:
    method = DFDC if label == "fake" else ""
    return Item(path.as_posix(), label, path.stem, (), method, DFDC, split, source=source)


def _table(path: Path) -> Table:
    try:
        table = read_table(path)
        for column in ("filename", "label"):
            table.require(column, f"as the {_TEST_LABELS} of {DFDC} has")
    except ValueError as error:
        raise DeepfakeDataError(str(error)) from error
    return table


def _previewed(root: Path, path: Path, name: str, entry: Any) -> Item:
    if not isinstance(entry, dict) or "label" not in entry or "set" not in entry:
        raise DeepfakeDataError(
            f"{path}: {name} has no label and set. Take the list as it is published."
        )
    name = name.replace("\\", "/")
    label = _word(entry["label"], f"{path}, {name}")
    folder = name.partition("/")[0]
    if folder.lower().startswith("original") != (label == "real"):
        raise DeepfakeDataError(
            f"{path}: {name} is {label} by its label, but lies in '{folder}'. Take the list as it is published."
        )
    split = SPLIT_FOLDERS.get(str(entry["set"]).lower())
    if split is None:
        raise DeepfakeDataError(
            f"{path}: the set of {name} is '{entry['set']}'. Choices: train, test."
        )
    method = folder if label == "fake" else ""
    video = name.rpartition(".")[0]
    video = video if label == "real" else video.partition("/")[2]
    persons = _persons(entry, name)
    return Item((root / name).as_posix(), label, video, persons, method, DFDCP, split)


def _persons(entry: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Whom a video of the preview shows: its fields name them, and the folder that an original lies in."""
    swapped = entry.get("swapped_ids") or []
    given = [entry.get("target_id"), *(swapped if isinstance(swapped, list) else [swapped])]
    folder = name.split("/")[1] if name.count("/") > 1 else None
    found = [str(person) for person in (*given, folder) if person not in (None, "")]
    return tuple(f"dfdcp/{person}" for person in dict.fromkeys(found))


def _release(root: Path) -> Path:
    return root / _RELEASE if (root / _RELEASE).is_dir() else root


def _word(value: Any, where: str) -> LabelName:
    word = str(value).lower()
    if word == "real":
        return "real"
    if word == "fake":
        return "fake"
    raise DeepfakeDataError(f"{where}: the label is '{value}'. Choices: real, fake.")
