"""FaceForensics++ and the DeepFakeDetection videos that come with it, as published or cut into frames."""

from __future__ import annotations

from pathlib import Path

from vfm.data.layouts import Reading
from vfm.data.splits import SPLITS
from vfm.deepfake.data.filenames import DFD, FORENSICS
from vfm.deepfake.data.files import (
    Media,
    choose_compression,
    list_folders,
    read_json,
    read_videos,
)
from vfm.deepfake.data.record import DeepfakeDataError, Item, LabelName, group_items

_SEQUENCES: dict[str, LabelName] = {"original_sequences": "real", "manipulated_sequences": "fake"}
_ACTORS = ("actors", DFD)


def find(root: Path) -> bool:
    """Whether a folder holds FaceForensics++."""
    return any((root / name).is_dir() for name in _SEQUENCES)


def read(
    root: Path,
    *,
    compression: str | None = None,
    media: Media = "auto",
    lists: Path | None = None,
) -> Reading[Item]:
    """Read `original_sequences/<source>/<compression>/` and `manipulated_sequences/<method>/<compression>/`.

    The splits are those of train.json, val.json and test.json, lists of pairs of videos; a fake belongs to the split of
    both its videos. DeepFakeDetection has no splits and is for testing.

    Raises:
        DeepfakeDataError: There are several compressions, or a video is in two lists.
    """
    sources = [
        (label, folder)
        for name, label in _SEQUENCES.items()
        for folder in list_folders(root / name)
    ]
    present = {level.name for _, folder in sources for level in list_folders(folder)} - {"masks"}
    compression = choose_compression(present, compression, root)
    split_of = _read_splits(root, lists)
    items: list[Item] = []
    for label, folder in sources if compression else []:
        method = folder.name if label == "fake" else ""
        if folder.name in _ACTORS:
            common = Item("", label, "", (), method, DFD, "test", compression)
            items += read_videos(folder / compression, media, common)
            continue
        common = Item("", label, "", (), method, FORENSICS, "", compression)
        for item in read_videos(folder / compression, media, common):
            splits = {split_of.get(name.removeprefix("ff/"), "") for name in item.identities}
            items.append(item._replace(split=splits.pop() if len(splits) == 1 else ""))
    return group_items(items, _describe(items, bool(split_of)))


def _read_splits(root: Path, lists: Path | None) -> dict[str, str]:
    """The split of each real video."""
    folders = [lists] if lists is not None else [root / "splits", root]
    paths = {
        split: path
        for split in SPLITS
        for folder in folders
        if (path := folder / f"{split}.json").is_file()
    }
    if lists is not None and len(paths) < len(SPLITS):
        raise DeepfakeDataError(
            f"{lists} has no {', '.join(f'{split}.json' for split in SPLITS if split not in paths)}. Give the folder "
            "of the lists of pairs that FaceForensics++ is published with."
        )
    split_of: dict[str, str] = {}
    for split, path in paths.items():
        pairs = read_json(path)
        if not isinstance(pairs, list) or not all(
            isinstance(p, list) and len(p) == 2 for p in pairs
        ):
            raise DeepfakeDataError(
                f'{path} is no list of pairs of videos, such as [["071", "054"], ...]. Take the list as it is '
                "published."
            )
        for name in (name for pair in pairs for name in pair):
            # Some copies hold the names as numbers, which loses their zeros.
            name = f"{name:03}" if isinstance(name, int) else str(name)
            other = split_of.setdefault(name, split)
            if other != split:
                raise DeepfakeDataError(
                    f"The video '{name}' is in {other}.json and in {path}. Take the lists as they are published."
                )
    return split_of


def _describe(items: list[Item], has_lists: bool) -> list[str]:
    notes = []
    if any(item.dataset == DFD for item in items):
        notes.append(f"{DFD} has no splits of its own; all of it is for testing.")
    unsplit = {item.key for item in items if not item.split}
    if unsplit and not has_lists:
        notes.append(
            f"{FORENSICS} lies here without train.json, val.json and test.json, so its splits have to be drawn, "
            "and results do not compare with published ones."
        )
    elif unsplit:
        notes.append(
            f"{len(unsplit)} videos are in no split, or were made from videos of two, such as "
            f"{'/'.join(part for part in min(unsplit) if part)}."
        )
    return notes
