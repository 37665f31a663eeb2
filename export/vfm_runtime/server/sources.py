"""Where bundles are looked for, and how a change of their files is noticed."""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vfm_runtime.bundle.contract import MANIFEST_FILE
from vfm_runtime.errors import OptionError

ONLY_VERSION = "1"
"""Version of a bundle that is no folder of versions."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_VERSION = re.compile(r"0|[1-9][0-9]*", re.ASCII)

Print = frozenset[tuple[str, int, int, int]]
"""State of all files of a bundle."""


class Source(NamedTuple):
    """Where the versions of a model are looked for."""

    name: str
    folder: Path


class Stamp(NamedTuple):
    """Tells one `vfm.json` from the next in its place."""

    folder: Path
    """The bundle's own folder, behind all links."""
    inode: int
    mtime_ns: int
    size: int


def read_sources(words: Iterable[str]) -> list[Source]:
    """Return where each model is.

    Args:
        words: FOLDER, whose name is the model's, or NAME=FOLDER.

    Raises:
        ValueError: There are none, a name has other characters than it may, or stands twice.
    """
    sources: dict[str, Source] = {}
    for word in words:
        source = _read_source(word)
        if source.name in sources:
            raise OptionError(
                f"Two bundles are named '{source.name}': {sources[source.name].folder} and "
                f"{source.folder}. Name one of them otherwise: NAME=FOLDER."
            )
        sources[source.name] = source
    if not sources:
        raise OptionError("There is no bundle to serve. Give FOLDER or NAME=FOLDER.")
    return list(sources.values())


def _read_source(word: str) -> Source:
    name, equals, folder = word.partition("=")
    if not equals or Path(word).exists():
        # By its own name, not that of what it links to: `current` may lead to another each day.
        folder, name = word, Path(os.path.abspath(word)).name  # noqa: PTH100
    if not _NAME.fullmatch(name) or not folder:
        raise OptionError(
            f"The bundle '{word}' has the name '{name}'. A name has letters, digits, '_', '.' and "
            "'-' only. Give NAME=FOLDER."
        )
    return Source(name, Path(folder).absolute())


def look(folder: Path) -> dict[str, Stamp]:
    """Find the versions of a model, lowest first; none where there is no bundle that can be read.

    Args:
        folder: A bundle, or a folder of numbered bundles.
    """
    found = {}
    for version, bundle in _bundles(folder).items():
        # Files come and go while they are looked at.
        with contextlib.suppress(OSError, RuntimeError):
            real = bundle.resolve(strict=True)
            facts = (real / MANIFEST_FILE).stat()
            found[version] = Stamp(real, facts.st_ino, facts.st_mtime_ns, facts.st_size)
    return found


def _bundles(folder: Path) -> dict[str, Path]:
    try:
        if (folder / MANIFEST_FILE).is_file():
            return {ONLY_VERSION: folder}
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return {}
    return {name: folder / name for name in by_number(filter(_VERSION.fullmatch, names))}


def fingerprint(folder: Path) -> Print:
    """Tell the state of all files of a bundle from the next; the contents are not read.

    Args:
        folder: The bundle.
    """
    prints = set()
    with contextlib.suppress(OSError):
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                facts = path.stat()
                prints.add((str(path), facts.st_ino, facts.st_mtime_ns, facts.st_size))
    return frozenset(prints)


def by_number(versions: Iterable[str]) -> list[str]:
    """Return versions from the lowest to the highest.

    Args:
        versions: Names of numbered folders.
    """
    return sorted(versions, key=int)
