"""Bundle paths: where the versions of each model are looked for, and how a change of their files is noticed."""

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

Fingerprint = frozenset[tuple[str, int, int, int]]
"""Path, inode, time of change and size of every file of a bundle."""


class ManifestStamp(NamedTuple):
    """Tells one `vfm.json` from the next one at the same path."""

    folder: Path
    """The bundle's folder, behind all links."""
    inode: int
    mtime_ns: int
    size: int


def parse_bundle_paths(words: Iterable[str]) -> dict[str, Path]:
    """Return the folder where the versions of each model are looked for, by the name of the model.

    Args:
        words: FOLDER, whose name is the model's, or NAME=FOLDER.

    Raises:
        ValueError: There are none, a name has other characters than it may, or stands twice.
    """
    paths: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).exists():
            # The name of a link, not of what it links to: `current` may lead to another folder each day.
            folder, name = word, Path(os.path.abspath(word)).name  # noqa: PTH100
        if not _NAME.fullmatch(name) or not folder:
            raise OptionError(
                f"The bundle '{word}' has the name '{name}'. A name has letters, digits, '_', '.' and "
                "'-' only. Give NAME=FOLDER."
            )
        path = Path(folder).absolute()
        if name in paths:
            raise OptionError(
                f"Two bundles are named '{name}': {paths[name]} and {path}. "
                "Name one of them otherwise: NAME=FOLDER."
            )
        paths[name] = path
    if not paths:
        raise OptionError("There is no bundle to serve. Give FOLDER or NAME=FOLDER.")
    return paths


def find_versions(folder: Path) -> dict[str, ManifestStamp]:
    """Find the versions of a model, lowest first, in a bundle or a folder of numbered bundles; maybe none."""
    bundles = {}
    # Files come and go while they are looked at.
    with contextlib.suppress(OSError):
        if (folder / MANIFEST_FILE).is_file():
            bundles = {ONLY_VERSION: folder}
        else:
            names = [path.name for path in folder.iterdir() if _VERSION.fullmatch(path.name)]
            bundles = {name: folder / name for name in sorted(names, key=int)}
    stamps = {}
    for version, bundle in bundles.items():
        with contextlib.suppress(OSError, RuntimeError):
            real = bundle.resolve(strict=True)
            status = (real / MANIFEST_FILE).stat()
            stamps[version] = ManifestStamp(real, status.st_ino, status.st_mtime_ns, status.st_size)
    return stamps


def take_fingerprint(folder: Path) -> Fingerprint:
    """Take the state of all files of a bundle, to be compared with a later one; contents are not read."""
    states = set()
    with contextlib.suppress(OSError):
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                states.add((str(path), status.st_ino, status.st_mtime_ns, status.st_size))
    return frozenset(states)
