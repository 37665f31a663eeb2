"""Exact copies: image files of the same bytes, which stay on one side of a split."""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path

MOST_FILES = 20_000
"""Among more files than these no copies are looked for: it would take longer than a start may."""

_WINDOW = 4096


def find_copies(paths: Mapping[str, str | Path], source: Path, *, is_drawn: bool) -> dict[str, str]:
    """The name of the first of several equal files, by the name of each other one.

    Args:
        paths: Path of each file by its name.
        source: What the files belong to.
        is_drawn: Whether a split is drawn, so that it is said where files are too many to be compared.
    """
    if len(paths) > MOST_FILES:
        if is_drawn:
            warnings.warn(
                f"{source} has more than {MOST_FILES:,} images, so exact copies are not looked for; where there are "
                "any, they may lie on both sides of the split that is drawn.",
                stacklevel=3,
            )
        return {}
    groups = [sorted(paths)]
    # Few files are of one size, fewer agree in three places, and only those are read as a whole.
    for describe in (
        lambda path: path.stat().st_size,
        _hash_windows,
        lambda path: hashlib.sha256(path.read_bytes()).digest(),
    ):
        groups = [part for group in groups for part in _divide(group, paths, describe)]
    return {name: first for first, *others in groups for name in others}


def warn_of_copies(
    copies: Mapping[str, str],
    labels: Mapping[str, Hashable],
    splits: Mapping[str, Iterable[str]],
    source: Path,
) -> None:
    """Say how many images are copies, and what contradicts itself: two labels, or two splits.

    Args:
        copies: What `find_copies` returned.
        labels: Label of each image by its name.
        splits: Names of the images of each split.
        source: What the images belong to.
    """
    if not copies:
        return
    of_name = {name: split for split, names in splits.items() for name in names}
    pairs = sorted(copies.items())
    texts = [
        (pairs, "are exact copies of others", "Copies stay in one split where splits are drawn."),
        (
            [(a, b) for a, b in pairs if of_name.get(a) != of_name.get(b)],
            "are exact copies of images in another split",
            "What is trained on would be tested on: take one of each away.",
        ),
        (
            [(a, b) for a, b in pairs if labels[a] != labels[b]],
            "are exact copies of images with another label",
            "One of the labels is wrong, or both apply.",
        ),
    ]
    for cases, problem, advice in texts:
        if cases:
            (name, first), *_ = cases
            warnings.warn(
                f"{len(cases)} of {len(labels)} images of {source} {problem}, such as '{name}' of '{first}'. {advice}",
                stacklevel=3,
            )


def _divide(
    names: list[str],
    paths: Mapping[str, str | Path],
    describe: Callable[[Path], Hashable],
) -> Iterable[list[str]]:
    """The groups of two or more names whose files are described alike, in the order of the names."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        try:
            groups[describe(Path(paths[name]))].append(name)
        except OSError:
            continue  # it is listed as unreadable when it is opened
    return [group for group in groups.values() if len(group) > 1]


def _hash_windows(path: Path) -> bytes:
    """A digest of the beginning, the middle and the end of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for start in {0, size // 2, max(0, size - _WINDOW)}:
            file.seek(start)
            digest.update(file.read(_WINDOW))
    return digest.digest()
