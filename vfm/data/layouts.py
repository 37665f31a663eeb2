"""Layouts of data on disk: told apart by their files, and read to what they hold and its labels by split."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
L = TypeVar("L", bound="Layout[Any]")


class Reading(NamedTuple, Generic[T]):
    """What a folder or a file holds, one entry for each image."""

    splits: dict[str, list[T]]
    """Entries by train, val and test; by "" where the files say nothing of splits."""
    labels: Sequence[str] | None = None
    """Label names in the order of their numbers; None where only the entries name them."""
    notes: Sequence[str] = ()
    """What a person should know of the files, a sentence or two each."""

    label_ids: Mapping[str, int] | None = None
    """Ids that the files have for the labels; None where they have none."""

    @property
    def entries(self) -> list[T]:
        """The entries of all splits."""
        return list(chain.from_iterable(self.splits.values()))


@dataclass(frozen=True)
class Layout(Generic[T]):
    """A way to lay out images and what is known of them."""

    find: Callable[[Path], object]
    """Says by a true value that a path is of this layout, without reading all of it."""
    read: Callable[..., Reading[T]]
    """Reads a path, with the options that it takes."""
    options: tuple[str, ...] = ()
    """Names of the options that `read` takes beside the path."""
    exclusive: bool = False
    """Whether a path that is of another exclusive layout too is refused, not read by the first of them."""


@dataclass(frozen=True)
class LayoutTable(Generic[L]):
    """The layouts of one kind of data, told apart in order: the first that fits is read."""

    layouts: Mapping[str, L]
    error: type[ValueError]
    """Raised where a path is in no layout, in two, or not in the one that was named."""
    explain: Callable[[Path], str]
    """Says of a path that no layout fits what it is, and what can be read."""

    def detect(self, path: Path) -> str:
        """Name of the layout that a path, which exists, is in.

        Raises:
            ValueError: No layout fits, or two exclusive ones.
        """
        name = next(self._list_fitting(path), None)
        if name is None:
            raise self.error(self.explain(path))
        if self.layouts[name].exclusive:
            alike = [name for name in self._list_fitting(path) if self.layouts[name].exclusive]
            if len(alike) > 1:
                raise self.error(
                    f"{path} looks like {' and like '.join(alike)}. Name the one to read with format."
                )
        return name

    def require(self, path: Path, name: str, option: str) -> None:
        """Refuse a path that is not in the layout that an option, named in the message, names for it.

        Raises:
            ValueError: It is not in this layout; the text names the one that it is in.
        """
        if self.layouts[name].find(path):
            return
        fitting = next(self._list_fitting(path), None)
        looks = (
            f"It looks like {fitting}: set {option} {fitting}"
            if fitting
            else "No known format was found there"
        )
        raise self.error(f"{path} is not in the format '{name}'. {looks}.")

    def _list_fitting(self, path: Path) -> Iterator[str]:
        return (name for name, layout in self.layouts.items() if layout.find(path))


def list_files_beside(paths: Iterable[str]) -> set[str]:
    """All files in the folders of these paths, from one look at each folder in place of one at each file."""
    files: set[str] = set()
    for folder in {path[: path.rfind("/") + 1] for path in paths}:
        if Path(folder).is_dir():
            with os.scandir(folder or ".") as entries:
                files.update(folder + entry.name for entry in entries if entry.is_file())
    return files
