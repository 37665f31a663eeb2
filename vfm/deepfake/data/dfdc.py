"""DFDC (the Deepfake Detection Challenge), its preview DFDCP, and FFIW, as published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.layouts import Reading
from vfm.data.tables import read_table
from vfm.deepfake.data.files import Media, get_stem, list_folders, read_json, read_videos
from vfm.deepfake.data.record import DeepfakeDataError, Item, LabelName, group_items, parse_label

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
    return bool(_list_challenge(root))


def read_challenge(root: Path) -> Reading[Item]:
    """Read the parts of the training set by their metadata.json, and the test set by its labels.csv (1 is fake).

    Raises:
        DeepfakeDataError: A label is none.
    """
    items: list[Item] = []
    for path in _list_challenge(root):
        if path.name == _TEST_LABELS:
            items += _read_test_labels(path)
            continue
        for name, entry in _read_entries(path):
            if not isinstance(entry, dict):
                raise DeepfakeDataError(
                    f"{path}: the entry of {name} is no object. Download it again."
                )
            label = parse_label(str(entry.get("label")), f"{path}, {name}")
            split = SPLIT_FOLDERS.get(str(entry.get("split", "train")).lower(), "train")
            source = get_stem(entry.get("original") or "")
            items.append(_make_challenge_item(path.parent / name, label, split, source))
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
    return group_items(
        _make_preview_item(path, name.replace("\\", "/"), entry)
        for name, entry in _read_entries(path)
    )


def find_ffiw(root: Path) -> bool:
    """Whether a folder holds FFIW."""
    return any(
        (top / "source").is_dir() and (top / "target").is_dir() for top in (root, root / _RELEASE)
    )


def read_ffiw(root: Path, *, media: Media = "auto") -> Reading[Item]:
    """Read FFIW: `source` is real, `target` is fake, each with train, val and test."""
    top = root / _RELEASE if (root / _RELEASE).is_dir() else root
    items = []
    for folder in (*list_folders(top / "source"), *list_folders(top / "target")):
        split = SPLIT_FOLDERS.get(folder.name.lower())
        if split is None:
            continue
        fake = folder.parent.name == "target"
        common = Item("", "fake" if fake else "real", "", (), FFIW if fake else "", FFIW, split)
        # Each split counts its videos from the start.
        videos = read_videos(folder, media, common)
        items += [item._replace(video=f"{split}/{item.video}") for item in videos]
    return group_items(items, [_NO_PERSONS.format(FFIW)])


def _list_challenge(root: Path) -> list[Path]:
    """Files of labels: of the parts of the training set, and of the test set."""
    parts = (root, *list_folders(root), *list_folders(root / "train"))
    paths = [part / _METADATA for part in parts]
    return [p for p in (*paths, root / _TEST_LABELS, root / "test" / _TEST_LABELS) if p.is_file()]


def _read_entries(path: Path) -> Iterator[tuple[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DeepfakeDataError(
            f"{path} holds no object ({{...}}), but an object with an entry for each video is expected. Download it "
            "again."
        )
    return iter(content.items())


def _read_test_labels(path: Path) -> Iterator[Item]:
    try:
        table = read_table(path)
        for column in ("filename", "label"):
            table.require(column, f"as the {_TEST_LABELS} of {DFDC} has")
    except ValueError as error:
        raise DeepfakeDataError(str(error)) from error
    videos = path.parent / "videos"
    folder = videos if videos.is_dir() else path.parent
    words = {"0": "REAL", "1": "FAKE"}
    for index, row in enumerate(table.rows):
        cell = row["label"].strip()
        label = parse_label(words.get(cell, cell), table.where(index))
        yield _make_challenge_item(folder / row["filename"].strip(), label, "test", "")


def _make_challenge_item(path: Path, label: LabelName, split: str, source: str) -> Item:
    method = DFDC if label == "fake" else ""
    return Item(path.as_posix(), label, path.stem, (), method, DFDC, split, source=source)


def _make_preview_item(path: Path, name: str, entry: Any) -> Item:
    if not isinstance(entry, dict) or "label" not in entry or "set" not in entry:
        raise DeepfakeDataError(
            f"{path}: {name} has no label and set. Take the list as it is published."
        )
    label = parse_label(str(entry["label"]), f"{path}, {name}")
    folder, *below = name.split("/")
    if folder.lower().startswith("original") != (label == "real"):
        raise DeepfakeDataError(
            f"{path}: {name} is {label} by its label, but lies in '{folder}'. Take the list as it is published."
        )
    split = SPLIT_FOLDERS.get(str(entry["set"]).lower())
    if split is None:
        raise DeepfakeDataError(
            f"{path}: the set of {name} is '{entry['set']}'. Choices: train, test."
        )
    video = name.rpartition(".")[0]
    if label == "fake":
        video = video.partition("/")[2]
    # Whom a video shows: its fields name them, and the folder that an original lies in.
    swapped = entry.get("swapped_ids") or []
    swapped = swapped if isinstance(swapped, list) else [swapped]
    named = [entry.get("target_id"), *swapped, *below[:-1][:1]]
    persons = dict.fromkeys(str(person) for person in named if person not in (None, ""))
    identities = tuple(f"dfdcp/{person}" for person in persons)
    method = folder if label == "fake" else ""
    return Item((path.parent / name).as_posix(), label, video, identities, method, DFDCP, split)
