"""Finds out which layout a folder of real and forged images has, and reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from vfm.deepfake.data.celeb import find_celeb, read_celeb
from vfm.deepfake.data.deepfakebench import find_lists, read_lists
from vfm.deepfake.data.dfdc import (
    find_challenge,
    find_ffiw,
    find_preview,
    read_challenge,
    read_ffiw,
    read_preview,
)
from vfm.deepfake.data.ffpp import find_forensics, read_forensics
from vfm.deepfake.data.files import Media, folders, read_json, walk
from vfm.deepfake.data.folders import Grouping, find_plain, read_generated, read_plain
from vfm.deepfake.data.manifest import present, read_manifest
from vfm.deepfake.data.record import LABELS, FakesError, LabelName, Reading, check_items, ordered

Format = Literal[
    "auto",
    "manifest",
    "ffpp",
    "celeb",
    "ffiw",
    "dfdcp",
    "dfdc",
    "deepfakebench",
    "wang",
    "genimage",
    "plain",
]

MANIFEST = "manifest.csv"
"""Name of a manifest in a folder of crops."""

_TABLES = (".csv", ".tsv", ".txt", ".parquet")


class Layout(NamedTuple):
    """A way to lay out real and forged images."""

    find: Callable[[Path], bool]
    read: Callable[..., Reading]
    options: tuple[str, ...]
    """Of `import_layout`, those that it takes."""


def import_layout(
    root: str | Path,
    format: Format = "auto",
    *,
    compression: str | None = None,
    media: Media = "auto",
    lists: str | Path | None = None,
    base: str | Path | None = None,
    grouping: Grouping = "auto",
    labels: Mapping[str, LabelName] | None = None,
) -> Reading:
    """Read a folder, or a list, of real and forged images or videos.

    Args:
        root: A folder in one of the layouts, a manifest, or a JSON list.
        format: Its layout; `auto` finds out.
        compression: Which to read, where there are several: ffpp, deepfakebench.
        media: Whether to read videos or frames, where there are both: ffpp, celeb, ffiw.
        lists: Folder of the official lists of splits, where it is another: ffpp, celeb.
        base: The folder that paths start from, where it is another: manifest, deepfakebench.
        grouping: Which images are frames of one video: plain.
        labels: What names that the layout does not know mean: manifest, deepfakebench, plain, wang, genimage.

    Returns:
        The items, with absolute paths, ordered by data set, method, video and frame; `split` is as the data set gives
        it. Missing files are left out with a warning.

    Raises:
        FakesError: No layout fits, an option is not for it, or the files contradict each other.
    """
    root = Path(root).expanduser().absolute()
    if not root.exists():
        raise FakesError(
            f"There is no file or folder {root} (looked in {Path.cwd()}). Check the path."
        )
    _check_choices(format=(format, Format), media=(media, Media), grouping=(grouping, Grouping))
    name = _detect(root) if format == "auto" else format
    given: dict[str, Any] = {
        "compression": compression,
        "media": media,
        "lists": Path(lists) if lists is not None else None,
        "base": Path(base) if base is not None else None,
        "grouping": grouping,
        "labels": labels,
    }
    reading = _LAYOUTS[name].read(root, **_options(name, given))
    if not reading.items:
        raise FakesError(
            f"There are no images or videos in {root}, read as '{name}'. {_found(root)} Choices of format: "
            f"{', '.join(_LAYOUTS)}."
        )
    check_items(reading.items, str(root))
    items = present(reading.items, str(root), str(root))
    return Reading(ordered(items), [*reading.notes, *_one_label(reading, root)])


def _read_manifest(
    root: Path, *, base: Path | None = None, labels: Mapping[str, LabelName] | None = None
) -> Reading:
    return Reading(read_manifest(root / MANIFEST if root.is_dir() else root, base, labels), [])


def _find_manifest(root: Path) -> bool:
    if root.is_dir():
        return (root / MANIFEST).is_file()
    if root.suffix.lower() in _TABLES:
        return True
    return root.suffix.lower() == ".json" and isinstance(read_json(root), list)


def _find_wang(root: Path) -> bool:
    return _has_folder(root, "0_real", "1_fake")


def _find_genimage(root: Path) -> bool:
    return _has_folder(root, "ai", "nature")


def _has_folder(root: Path, *names: str) -> bool:
    return any(set(names) & set(parts) for parts, _ in walk(root))


_LAYOUTS: dict[str, Layout] = {
    "manifest": Layout(_find_manifest, _read_manifest, ("base", "labels")),
    "ffpp": Layout(find_forensics, read_forensics, ("compression", "media", "lists")),
    "celeb": Layout(find_celeb, read_celeb, ("media", "lists")),
    "ffiw": Layout(find_ffiw, read_ffiw, ("media",)),
    "dfdcp": Layout(find_preview, read_preview, ()),
    "dfdc": Layout(find_challenge, read_challenge, ()),
    "deepfakebench": Layout(find_lists, read_lists, ("compression", "base", "labels")),
    "wang": Layout(_find_wang, read_generated, ("labels",)),
    "genimage": Layout(_find_genimage, read_generated, ("labels",)),
    "plain": Layout(find_plain, read_plain, ("grouping", "labels")),
}
_PUBLISHED = ("ffpp", "celeb", "ffiw", "dfdcp", "dfdc")


def _detect(root: Path) -> str:
    found = [name for name in _PUBLISHED if root.is_dir() and _LAYOUTS[name].find(root)]
    if len(found) > 1 and not _find_manifest(root):
        raise FakesError(
            f"{root} looks like {' and like '.join(found)}. Name the one to read with format."
        )
    for name, layout in _LAYOUTS.items():
        if (root.is_dir() or name in ("manifest", "deepfakebench")) and layout.find(root):
            return name
    inside = [
        f"{folder.name} ({name})"
        for folder in folders(root)
        for name in _PUBLISHED
        if _LAYOUTS[name].find(folder)
    ]
    if inside:
        raise FakesError(
            f"{root} is no data set, but has some in it: {', '.join(inside)}. Give one of these folders, or a "
            "manifest of all."
        )
    raise FakesError(
        f"Nothing says which images in {root} are real and which are fake. {_found(root)} Put them into folders called "
        f"real and fake, write a manifest (a CSV with the columns path and label), or name the layout with format: "
        f"{', '.join(_LAYOUTS)}."
    )


def _options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a layout takes; others must not be given."""
    takes = _LAYOUTS[name].options
    used = {key: value for key, value in given.items() if value not in (None, "auto")}
    for key in used:
        if key not in takes:
            raise FakesError(
                f"The layout '{name}' takes no {key}. It takes: {', '.join(takes) or 'no options'}. Leave it out, or "
                "name another format."
            )
    return used


def _check_choices(**given: tuple[str, Any]) -> None:
    for name, (value, choices) in given.items():
        if value not in get_args(choices):
            raise FakesError(f"{name} is '{value}'. Choices: {', '.join(get_args(choices))}.")


def _found(root: Path) -> str:
    if root.is_file():
        return "It is a file."
    names = [folder.name for folder in folders(root)]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"Found the folders {shown}." if names else "There are no folders in it."


def _one_label(reading: Reading, root: Path) -> list[str]:
    labels = {item.label for item in reading.items}
    if len(labels) > 1:
        return []
    only, other = (name for name in sorted(LABELS, key=lambda name: name not in labels))
    use = (
        "That is enough to train on blends of them, but no test says anything without fakes."
        if only == "real"
        else "Nothing can be trained or tested without real ones."
    )
    return [f"{root} has only {only} images or videos, and no {other} one. {use}"]
