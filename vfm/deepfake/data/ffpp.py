"""FaceForensics++ and the DeepFakeDetection videos that come with it, as published or cut into frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vfm.data.layouts import Reading
from vfm.data.splits import SPLITS
from vfm.deepfake.data.filenames import DFD, FORENSICS, actors, forensics
from vfm.deepfake.data.files import Files, Media, clip_items, clips, folders, read_json
from vfm.deepfake.data.record import DeepfakeDataError, Item, LabelName, group_items

_SEQUENCES: dict[str, LabelName] = {"original_sequences": "real", "manipulated_sequences": "fake"}
_ACTORS = ("actors", DFD)


def find_forensics(root: Path) -> bool:
    """Whether a folder holds FaceForensics++."""
    return any((root / name).is_dir() for name in _SEQUENCES)


def read_forensics(
    root: Path,
    *,
    compression: str | None = None,
    media: Media = "auto",
    lists: Path | None = None,
) -> Reading[Item]:
    """Read `original_sequences/<source>/<compression>/` and `manipulated_sequences/<method>/<compression>/`.

    The splits are those of train.json, val.json and test.json, lists of pairs of videos; a fake belongs to the split of
    both its videos. DeepFakeDetection has no splits and is for testing.

    Args:
        root: The folder of the two.
        compression: raw, c0, c23 or c40; may be left out where there is one.
        media: Videos or frames.
        lists: Folder of the three lists; by default the root or its folder `splits`.

    Raises:
        DeepfakeDataError: There are several compressions, or a video is in two lists.
    """
    places = [
        (label, folder) for name, label in _SEQUENCES.items() for folder in folders(root / name)
    ]
    compression = _compression(places, compression, root)
    split_of = _splits(root, lists)
    files = Files()
    items = []
    for label, folder in places:
        for clip in clips(folder / compression, media):
            like = _like(label, folder.name, clip.name, split_of)
            items += clip_items(clip, like._replace(compression=compression), files)
    return group_items(items, _notes(items, split_of))


def _like(label: LabelName, folder: str, video: str, split_of: dict[str, str]) -> Item:
    if folder in _ACTORS:
        found, dataset, split = actors(video), DFD, "test"
    else:
        found, dataset = forensics(video), FORENSICS
        splits = {split_of.get(name.removeprefix("ff/"), "") for name in found.identities}
        split = min(splits) if len(splits) == 1 else ""
    method = folder if label == "fake" else ""
    return Item("", label, video, found.identities, method, dataset, split, source=found.source)


def _compression(places: list[tuple[LabelName, Path]], wanted: str | None, root: Path) -> str:
    there = sorted({path.name for _, folder in places for path in folders(folder)} - {"masks"})
    if wanted is not None and wanted in there:
        return wanted
    if wanted is not None:
        raise DeepfakeDataError(
            f"{root} has no videos of compression '{wanted}'. Choices: {', '.join(there) or 'none'}."
        )
    if len(there) != 1:
        found = f"videos of the compressions {', '.join(there)}" if there else "no videos"
        raise DeepfakeDataError(
            f"{root} has {found}. Name the one to read with compression, such as c23."
        )
    return there[0]


def _splits(root: Path, lists: Path | None) -> dict[str, str]:
    """The split of each real video."""
    found: dict[str, str] = {}
    places = [lists] if lists is not None else [root, root / "splits"]
    paths = {
        split: path
        for split in SPLITS
        for place in reversed(places)
        if (path := place / f"{split}.json").is_file()
    }
    if lists is not None and len(paths) < len(SPLITS):
        raise DeepfakeDataError(
            f"{lists} has no {', '.join(f'{split}.json' for split in SPLITS if split not in paths)}. Give the folder "
            "of the lists of pairs that FaceForensics++ is published with."
        )
    for split, path in paths.items():
        for name in _names(path):
            other = found.setdefault(name, split)
            if other != split:
                raise DeepfakeDataError(
                    f"The video '{name}' is in {other}.json and in {path}. Take the lists as they are published."
                )
    return found


def _names(path: Path) -> list[str]:
    content = read_json(path)
    pairs: list[Any] = content if isinstance(content, list) else [None]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DeepfakeDataError(
            f'{path} is no list of pairs of videos, such as [["071", "054"], ...]. Take the list as it is published.'
        )
    # Some copies hold the names as numbers, which loses their zeros.
    return [f"{name:03}" if isinstance(name, int) else str(name) for pair in pairs for name in pair]


def _notes(items: list[Item], split_of: dict[str, str]) -> list[str]:
    notes = []
    if any(item.dataset == DFD for item in items):
        notes.append(f"{DFD} has no splits of its own; all of it is for testing.")
    without = {item.key for item in items if not item.split}
    if not split_of and without:
        notes.append(
            f"{FORENSICS} lies here without train.json, val.json and test.json, so its splits have to be drawn, "
            "and results do not compare with published ones."
        )
    elif without:
        notes.append(
            f"{len(without)} videos are in no split, or were made from videos of two, such as "
            f"{'/'.join(part for part in min(without) if part)}."
        )
    return notes
