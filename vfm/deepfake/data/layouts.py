"""Layouts of folders of real and fake images: told apart, and read with the options that each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from vfm.data.layouts import Layout, LayoutTable, Reading
from vfm.deepfake.data import celeb, deepfakebench, dfdc, ffpp, folders
from vfm.deepfake.data.files import Media, list_folders, read_json, walk_media
from vfm.deepfake.data.manifest import drop_absent, read_manifest
from vfm.deepfake.data.record import (
    LABELS,
    DeepfakeDataError,
    Item,
    LabelName,
    check_items,
    group_items,
    sort_items,
)

_Published = Literal["ffpp", "celeb", "ffiw", "dfdcp", "dfdc"]
Format = Literal["auto", "manifest", _Published, "deepfakebench", "wang", "genimage", "plain"]

MANIFEST = "manifest.csv"
"""Name of a manifest in a folder of crops."""

_TABLES = (".csv", ".tsv", ".txt", ".parquet")


def import_layout(
    root: str | Path,
    format: Format = "auto",
    *,
    compression: str | None = None,
    media: Media = "auto",
    lists: str | Path | None = None,
    base: str | Path | None = None,
    grouping: folders.Grouping = "auto",
    labels: Mapping[str, LabelName] | None = None,
) -> Reading[Item]:
    """Read a folder, or a list, of real and fake images or videos.

    Args:
        root: A folder in one of the layouts, a manifest, or a JSON list.
        format: Layout of the root; `auto` finds it out.
        compression: Which to read, where there are several: ffpp, deepfakebench.
        media: Whether to read videos or frames, where there are both: ffpp, celeb, ffiw.
        lists: Folder of the official lists of splits, where it is another: ffpp, celeb.
        base: The folder that paths start from, where it is another: manifest, deepfakebench.
        grouping: Which images are frames of one video: plain.
        labels: What names that the layout does not know mean: manifest, deepfakebench, plain, wang, genimage.

    Returns:
        The items by split as the data set gives it, with absolute paths, ordered by data set, method, video and frame.
        Missing files are left out with a warning.

    Raises:
        DeepfakeDataError: No layout fits, an option is not for it, or the files contradict each other.
    """
    root = Path(root).expanduser().absolute()
    if not root.exists():
        raise DeepfakeDataError(
            f"There is no file or folder {root} (looked in {Path.cwd()}). Check the path."
        )
    chosen = {
        "format": (format, Format),
        "media": (media, Media),
        "grouping": (grouping, folders.Grouping),
    }
    for option, (value, choices) in chosen.items():
        if value not in get_args(choices):
            raise DeepfakeDataError(
                f"{option} is '{value}'. Choices: {', '.join(get_args(choices))}."
            )
    name = DEEPFAKE_LAYOUTS.detect(root) if format == "auto" else format
    layout = DEEPFAKE_LAYOUTS.layouts[name]
    options: dict[str, Any] = {
        "compression": compression,
        "media": None if media == "auto" else media,
        "lists": Path(lists) if lists is not None else None,
        "base": Path(base) if base is not None else None,
        "grouping": None if grouping == "auto" else grouping,
        "labels": labels,
    }
    options = {key: value for key, value in options.items() if value is not None}
    for key in options:
        if key not in layout.options:
            takes = ", ".join(layout.options) or "no options"
            raise DeepfakeDataError(
                f"The layout '{name}' takes no {key}. It takes: {takes}. Leave it out, or name another format."
            )
    reading = layout.read(root, **options)
    items, notes = reading.entries, list(reading.notes)
    if not items:
        raise DeepfakeDataError(
            f"There are no images or videos in {root}, read as '{name}'. {_describe(root)} Choices of format: "
            f"{', '.join(DEEPFAKE_LAYOUTS.layouts)}."
        )
    check_items(items, str(root))
    labels_found = {item.label for item in items}
    if len(labels_found) == 1:
        only, other = (name for name in sorted(LABELS, key=lambda name: name not in labels_found))
        use = (
            "That is enough to train on blends of them, but no test says anything without fakes."
            if only == "real"
            else "Nothing can be trained or tested without real ones."
        )
        notes.append(f"{root} has only {only} images or videos, and no {other} one. {use}")
    return group_items(sort_items(drop_absent(items, str(root), str(root))), notes)


def _read_manifest(
    root: Path, *, base: Path | None = None, labels: Mapping[str, LabelName] | None = None
) -> Reading[Item]:
    return group_items(read_manifest(root / MANIFEST if root.is_dir() else root, base, labels))


def _find_manifest(root: Path) -> bool:
    if root.is_dir():
        return (root / MANIFEST).is_file()
    if root.suffix.lower() == ".json":
        return isinstance(read_json(root), list)
    return root.suffix.lower() in _TABLES


def _find_folder(*names: str) -> Callable[[Path], bool]:
    return lambda root: any(name in parts for parts, _ in walk_media(root) for name in names)


def _explain(root: Path) -> str:
    inside = [
        f"{folder.name} ({name})"
        for folder in list_folders(root)
        for name, layout in DEEPFAKE_LAYOUTS.layouts.items()
        if layout.exclusive and layout.find(folder)
    ]
    if inside:
        return (
            f"{root} is no data set, but has some in it: {', '.join(inside)}. Give one of these folders, or a "
            "manifest of all."
        )
    return (
        f"Nothing says which images in {root} are real and which are fake. {_describe(root)} Put them into folders "
        "called real and fake, write a manifest (a CSV with the columns path and label), or name the layout with "
        f"format: {', '.join(DEEPFAKE_LAYOUTS.layouts)}."
    )


DEEPFAKE_LAYOUTS: LayoutTable[Layout[Item]] = LayoutTable(
    {
        "manifest": Layout(_find_manifest, _read_manifest, ("base", "labels")),
        # Published data sets are exclusive: two of them in one folder would be mixed up.
        "ffpp": Layout(ffpp.find, ffpp.read, ("compression", "media", "lists"), exclusive=True),
        "celeb": Layout(celeb.find, celeb.read, ("media", "lists"), exclusive=True),
        "ffiw": Layout(dfdc.find_ffiw, dfdc.read_ffiw, ("media",), exclusive=True),
        "dfdcp": Layout(dfdc.find_preview, dfdc.read_preview, exclusive=True),
        "dfdc": Layout(dfdc.find_challenge, dfdc.read_challenge, exclusive=True),
        "deepfakebench": Layout(
            deepfakebench.find, deepfakebench.read, ("compression", "base", "labels")
        ),
        "wang": Layout(_find_folder("0_real", "1_fake"), folders.read_generated, ("labels",)),
        "genimage": Layout(_find_folder("ai", "nature"), folders.read_generated, ("labels",)),
        "plain": Layout(folders.find, folders.read, ("grouping", "labels")),
    },
    DeepfakeDataError,
    _explain,
)


def _describe(root: Path) -> str:
    if root.is_file():
        return "It is a file."
    names = [folder.name for folder in list_folders(root)]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"Found the folders {shown}." if names else "There are no folders in it."
