"""Reads a tree of class folders, and says in plain words what is wrong with it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vfm_runtime.errors import DataError
from vfm_runtime.media.image import IMAGE_SUFFIXES, find_images

SPLIT_FOLDERS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Names that a split's folder may have, in any case."""

Classes = dict[str, list[Path]]


def list_images(root: Path) -> list[Path]:
    """Every image below a folder, sorted.

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
    images: list[Path] = find_images(root)
    if not images:
        raise DataError(
            f"There are no images in {root}. Looked for {', '.join(sorted(IMAGE_SUFFIXES))}; "
            f"found {_found_instead(root)}. Put images in {root.name}/<class>/."
        )
    return images


def read_tree(root: Path) -> dict[str, Classes]:
    """Sort the images below a folder by split and class.

    Returns:
        For `root/<split>/<class>/...` the classes of each split; for `root/<class>/...` those of a
        split named ""; nothing where images lie in the folder itself and nowhere else.

    Raises:
        ValueError: The tree cannot be understood.
    """
    images = list_images(root)
    splits = _split_folders(root)
    if splits:
        return {split: _classes(folder, images) for split, folder in splits.items()}
    if all(path.parent == root for path in images):
        return {}
    return {"": _classes(root, images)}


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


def _split_folders(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    others: list[str] = []
    for folder in _folders(root):
        split = SPLIT_FOLDERS.get(folder.name.lower())
        if split is None:
            others.append(folder.name)
        elif split in found:
            raise DataError(
                f"{root} has two folders for one split: '{found[split].name}' and "
                f"'{folder.name}'. Keep one of them."
            )
        else:
            found[split] = folder
    if not found or not others:
        return found
    # A class may be called "train", but then its folder has no class folders in it.
    if any(_folders(folder) for folder in found.values()):
        named = _quoted([folder.name for folder in found.values()])
        raise DataError(
            f"{root} mixes split folders ({named}) with others ({_quoted(others)}). "
            f"Use {root.name}/<split>/<class>/ or {root.name}/<class>/, not both."
        )
    return {}


def _classes(folder: Path, images: Sequence[Path]) -> Classes:
    classes: Classes = {child.name: [] for child in _folders(folder)}
    loose = 0
    for path in images:
        if not path.is_relative_to(folder):
            continue
        parts = path.relative_to(folder).parts
        if len(parts) == 1:
            loose += 1
        else:
            classes.setdefault(parts[0], []).append(path)
    if not classes:
        raise DataError(
            f"{folder} has no class folders ({loose} images lie in it directly). "
            f"Put the images of each class in {folder.name}/<class>/."
        )
    empty = [name for name, members in classes.items() if not members]
    if empty:
        raise DataError(
            f"There are no images in the class {_folder_word(empty)} {_quoted(empty)} of {folder}. "
            "Add images or delete the folder."
        )
    if loose:
        warnings.warn(
            f"{loose} images lie directly in {folder}, beside the class folders; "
            "they are left out.",
            stacklevel=2,
        )
    return classes


def _folders(folder: Path) -> list[Path]:
    # `find_images` leaves out the same ones; archives made on macOS bring the second kind.
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name != "__MACOSX"
    )


def _folder_word(names: Sequence[str]) -> str:
    return "folder" if len(names) == 1 else "folders"


def _quoted(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _found_instead(root: Path) -> str:
    files = [p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")]
    if not files:
        return "no files at all"
    kinds = Counter(path.suffix.lower() or "no suffix" for path in files)
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(5))
