"""Media files below a folder: which there are, and which are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vfm_runtime.media.image import IMAGE_SUFFIXES, ImageError

_SYSTEM_FOLDERS = {
    *("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
}


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the image files in a folder and the folders below it, as `list_files` does.

    Raises:
        ImageError: It is not a folder.
    """
    if not Path(folder).is_dir():
        raise ImageError(str(folder), "not a folder", "Give a folder that holds images.")
    return list_files(folder, IMAGE_SUFFIXES)


def describe_unread(
    folder: str | os.PathLike[str], files: Sequence[Path], num_read: int
) -> str | None:
    """Say that files below a folder are left out since their formats are not read; None where there are none.

    Args:
        folder: Folder that is read.
        files: Files that are left out.
        num_read: Number of files that are read.
    """
    if not files:
        return None
    kinds = Counter(file.suffix.lower() for file in files)
    listed = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
    return (
        f"{len(files)} files of {os.fspath(folder)} are left out beside {num_read} images, since their formats are not "
        f"read: {listed}. Convert them to PNG or JPEG."
    )


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or is a folder that a system keeps for itself.

    Those are `__MACOSX` in unpacked archives, `@eaDir` with the thumbnails of a Synology disk, and what Windows and
    Linux put on a disk.
    """
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def list_files(folder: str | os.PathLike[str], suffixes: tuple[str, ...]) -> list[Path]:
    """List the files in a folder and the folders below it whose names end so, sorted.

    Links to folders are followed, but for those that lead back to a folder above them. What `is_hidden` is left out.
    """
    return [Path(path) for path in list_file_names(folder, suffixes)]


def list_file_names(folder: str | os.PathLike[str], suffixes: tuple[str, ...]) -> list[str]:
    """List files as `list_files` does, each as text: of a million files, a `Path` of each would take seconds."""
    folder = os.fspath(Path(folder))
    files: list[str] = []
    # The real folders in which links were met on the way to a folder, and its own: a link to one of them is a circle.
    ways: dict[str, tuple[str, ...]] = {folder: (os.path.realpath(folder),)}
    for directory, folders, names in os.walk(folder, followlinks=True):
        way = ways.pop(directory)
        entered = []
        for name in folders:
            if is_hidden(name):
                continue
            path, below = os.path.join(directory, name), way  # noqa: PTH118
            if os.path.islink(path):  # noqa: PTH114
                target = os.path.realpath(path)
                here = os.path.realpath(directory)
                if any(real == target or real.startswith(target + os.sep) for real in (*way, here)):
                    continue
                below = (*way, here, target)
            ways[path] = below
            entered.append(name)
        # os.walk goes down into the folders that this list holds.
        folders[:] = entered
        names = [name for name in names if name[0] != "." and name.lower().endswith(suffixes)]
        prefix = os.path.join(directory, "").removeprefix("." + os.sep)  # noqa: PTH118
        files += [prefix + name for name in names]
    # By parts: the same order on every system, whatever its separator is.
    return sorted(files, key=lambda path: path.replace(os.sep, "\0"))
