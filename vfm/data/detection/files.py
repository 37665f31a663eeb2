"""Image files by the names that annotations state, however another system spells them."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vfm_runtime.media.image import IMAGE_SUFFIXES

_SAMPLE = 50


class _Listing(NamedTuple):
    files: set[str]
    names: set[str]
    """Files and folders."""
    alike: dict[str, str | None]
    """Names by their spelling; None where two are spelled alike."""
    images: dict[str, list[str]]
    """Names of image files by the spelling of what stands before their suffix."""


class ImageFiles:
    """Files below folders, found by one look at each folder: as they are named, or spelled otherwise.

    Backslashes are taken for slashes, letters in either case and either form of Unicode for the same, since Windows
    and macOS do so.
    """

    def __init__(self) -> None:
        self._listings: dict[str, _Listing] = {}
        self._respelled: list[tuple[str, Path]] = []

    def find(self, folder: Path, name: str) -> Path | None:
        """The file that a name means below a folder; None where there is none."""
        exact = folder / name
        if exact.name in self._list(exact.parent).files:
            return exact
        path = folder
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        for part in parts:
            listing = self._list(path)
            exists = part in listing.names or part == ".."
            real = part if exists else listing.alike.get(_spell(part))
            if real is None:
                return None
            path = path / real
        if path.name not in self._list(path.parent).files:
            return None
        if path.as_posix() != exact.as_posix():
            self._respelled.append((name, path))
        return path

    def find_stem(self, folder: Path, stem: str) -> list[Path]:
        """The images in a folder that have a name, whatever their suffixes; those that are spelled so before others."""
        names = sorted(self._list(folder).images.get(_spell(stem), []))
        exact = [name for name in names if name.rpartition(".")[0] == stem]
        return [folder / name for name in exact or names]

    def find_below(self, folders: Iterable[Path], names: Sequence[str]) -> tuple[list[Path], int]:
        """The files of many names, below that folder which holds most of them.

        Names that start with folders of another machine lose as many as it takes.

        Args:
            folders: Folders that may hold the files, the likeliest first.
            names: Names as the annotations state them.

        Returns:
            A path for each name, which need not exist, and how many leading folders were taken off each.
        """
        step = max(1, len(names) // _SAMPLE)
        sample = names[::step]
        depth = max((name.replace("\\", "/").count("/") for name in sample), default=0)
        # Files that are named otherwise in another folder are not those that are missing in this one.
        tries = [(folder, cut) for cut in range(depth + 1) for folder in dict.fromkeys(folders)]
        folder, cut = max(tries, key=lambda one: self._count(one[0], one[1], sample))
        self._respelled.clear()
        paths = []
        for name in names:
            short = _cut(name, cut)
            paths.append(self.find(folder, short) or folder / short.replace("\\", "/"))
        return paths, cut

    def describe(self) -> list[str]:
        """A sentence on the files whose names are spelled otherwise, where there are any."""
        if not self._respelled:
            return []
        name, path = self._respelled[0]
        number = len(self._respelled)
        return [
            f"{number} image files are spelled otherwise in the annotations (backslashes, upper and lower case, or "
            f"forms of Unicode), such as '{name}' for {path}; they are taken for the same."
        ]

    def _count(self, folder: Path, cut: int, names: Sequence[str]) -> int:
        return sum(self.find(folder, _cut(name, cut)) is not None for name in names)

    def _list(self, folder: Path) -> _Listing:
        key = str(folder)
        if key not in self._listings:
            listing = _Listing(set(), set(), {}, {})
            if folder.is_dir():
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_file():
                            listing.files.add(entry.name)
                            if entry.name.lower().endswith(IMAGE_SUFFIXES):
                                stem = _spell(entry.name.rpartition(".")[0])
                                listing.images.setdefault(stem, []).append(entry.name)
                        listing.names.add(entry.name)
                        spelling = _spell(entry.name)
                        twice = spelling in listing.alike
                        listing.alike[spelling] = None if twice else entry.name
            self._listings[key] = listing
        return self._listings[key]


def _spell(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _cut(name: str, number: int) -> str:
    """A name without its first folders."""
    return "/".join(name.replace("\\", "/").split("/")[number:]) if number else name
