"""Class folders: a tree of images sorted by split and class, and what is wrong with it in plain words."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vfm_runtime.errors import DataError
from vfm_runtime.media.files import describe_unread, is_hidden, list_file_names
from vfm_runtime.media.image import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from vfm_runtime.media.video import VIDEO_SUFFIXES

SPLIT_FOLDERS = dict(train="train", val="val", valid="val", validation="val", test="test")
"""Names that a split's folder may have, in any case."""

Classes = dict[str, list[str]]


def list_images(root: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """Path of every image below a folder, sorted, as text: of a million, objects would take seconds.

    Args:
        root: Folder whose images, in it or below it, are listed.
        suffixes: How the names of its images, or of what else is read, end.

    Raises:
        ValueError: The folder is missing, is a file, is empty or holds no images.
    """
    if not root.exists():
        raise DataError(
            f"The folder {root} does not exist (looked in {Path.cwd()}). Check the path."
        )
    if not root.is_dir():
        raise DataError(
            f"{root} is a file, not a folder. Give the folder that holds the class folders."
        )
    images = list_readable(root, suffixes)
    if not images:
        files = [p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")]
        kinds = Counter(path.suffix.lower() or "no suffix" for path in files).most_common(5)
        content = ", ".join(f"{count} x {kind}" for kind, count in kinds) or "no files at all"
        raise DataError(
            f"There are no images in {root}. Looked for {', '.join(sorted(suffixes))}; "
            f"found {content}. Put images in {root.name}/<class>/."
        )
    return images


def list_readable(root: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """List images like `list_images`, with a warning that counts images and videos of formats that are not read."""
    files: list[str] = list_file_names(root, (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES, *VIDEO_SUFFIXES))
    images = [path for path in files if path.lower().endswith(suffixes)]
    unread = [Path(path) for path in files if not path.lower().endswith(suffixes)]
    if note := describe_unread(root, unread, len(images)):
        warnings.warn(note, stacklevel=3)
    return images


def read_tree(root: Path) -> dict[str, Classes]:
    """Sort the images below a folder by split and class.

    Returns:
        For `root/<split>/<class>/...` the classes of each split; for `root/<class>/...` those of a split named "";
        nothing where images lie in the folder itself and nowhere else.

    Raises:
        ValueError: The tree cannot be understood.
    """
    images = list_images(root)
    splits = _find_split_folders(root)
    if splits:
        return {split: _sort_by_class(folder, images) for split, folder in splits.items()}
    prefix = write_prefix(root)
    if not any(os.sep in path[len(prefix) :] for path in images):
        return {}
    return {"": _sort_by_class(root, images)}


def write_prefix(folder: Path) -> str:
    """What the path of every file below a folder begins with; of a million files, pathlib is slow to tell."""
    return "" if folder == Path() else os.path.join(folder, "")  # noqa: PTH118


def check_class_names(names: Iterable[str], root: Path) -> None:
    """Refuse sets of classes that cannot be meant.

    Raises:
        ValueError: There is only one class, or two differ only by case or surrounding spaces.
    """
    names = sorted(names)
    if len(names) < 2:
        raise DataError(
            f"{root} has only one class, '{names[0]}'. A classifier needs at least two: "
            "add a folder with images of what it shall be told apart from."
        )
    alike: dict[str, str] = {}
    for name in names:
        other = alike.setdefault(name.strip().casefold(), name)
        if other != name:
            raise DataError(
                f"The classes '{other}' and '{name}' in {root} differ only by case or spaces. "
                "If they are the same, put their images in one folder; if not, rename one."
            )


def _find_split_folders(root: Path) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    others: list[str] = []
    for folder in _list_folders(root):
        split = SPLIT_FOLDERS.get(folder.name.lower())
        if split is None:
            others.append(folder.name)
        elif split in splits:
            raise DataError(
                f"{root} has two folders for one split: '{splits[split].name}' and "
                f"'{folder.name}'. Keep one of them."
            )
        else:
            splits[split] = folder
    if not splits or not others:
        return splits
    # A class may be called "train", but then its folder has no class folders in it.
    if any(_list_folders(folder) for folder in splits.values()):
        named = _quote([folder.name for folder in splits.values()])
        raise DataError(
            f"{root} mixes split folders ({named}) with others ({_quote(others)}). "
            f"Use {root.name}/<split>/<class>/ or {root.name}/<class>/, not both."
        )
    return {}


def _sort_by_class(folder: Path, images: Sequence[str]) -> Classes:
    classes: Classes = {child.name: [] for child in _list_folders(folder)}
    loose = 0
    prefix = write_prefix(folder)
    for path in images:
        if path.startswith(prefix):
            name, separator, _ = path[len(prefix) :].partition(os.sep)
            if separator:
                classes.setdefault(name, []).append(path)
            else:
                loose += 1
    if not classes:
        raise DataError(
            f"{folder} has no class folders ({loose} images lie in it directly). "
            f"Put the images of each class in {folder.name}/<class>/."
        )
    empty = [name for name, members in classes.items() if not members]
    if empty:
        folders = "folder" if len(empty) == 1 else "folders"
        raise DataError(
            f"There are no images in the class {folders} {_quote(empty)} of {folder}. "
            "Add images or delete the folder."
        )
    if loose:
        warnings.warn(
            f"{loose} images lie directly in {folder}, beside the class folders; "
            "they are left out.",
            stacklevel=2,
        )
    return classes


def _list_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _quote(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
