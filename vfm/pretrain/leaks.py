"""Leaks of a pretraining: images that judge it and are trained on, as equal files or as near-copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vfm_runtime.media.video import choose_evenly

from vfm.data.records import Record
from vfm.search.image_duplicates import find_near_copies
from vfm.search.image_scan import scan_images
from vfm.tasks.checkpoint import find_copies

MOST_OPENED = 20_000
"""Images of each side that are opened to find near-copies; equal files are found among all."""


class Leak(NamedTuple):
    """An image that judges, and is trained on."""

    set: str
    """What it is of, such as the probe."""
    name: str
    source: str
    """Name of the training image that it is one with."""
    how: str
    """`same file`, `near-copy` or `mirrored near-copy`."""


def find_leaks(
    judging: Mapping[str, Sequence[Record]], trained: Sequence[Record], most: int = MOST_OPENED
) -> tuple[list[Leak], list[str]]:
    """Find images that judge among those trained on, with notes on what was not compared.

    Args:
        judging: Images that judge, by what they are of.
        trained: Images that are trained on.
        most: Images of each side that are opened to find near-copies, spread evenly.
    """
    leaks: list[Leak] = []
    rest: list[tuple[str, Record]] = []
    for what, records in judging.items():
        copies = find_copies(records, trained)
        leaks += [Leak(what, name, source, "same file") for name, source in copies.items()]
        rest += [(what, record) for record in records if record.name not in copies]
    opened = [trained[i] for i in choose_evenly(len(trained), most)]
    compared = [rest[i] for i in choose_evenly(len(rest), most)]
    scan = scan_images([*opened, *(record for _, record in compared)])
    pairs, notes = find_near_copies(scan, len(opened))
    named: set[int] = set()
    for first, second, how, _ in pairs:
        source, number = min(first, second), max(first, second) - len(opened)
        if number not in named:
            named.add(number)
            what, record = compared[number]
            leaks.append(Leak(what, record.name, opened[source].name, how))
    if len(opened) < len(trained) or len(compared) < len(rest):
        notes.append(
            f"Near-copies were looked for among {len(opened):,} of the {len(trained):,} images to train on, of "
            f"{len(compared):,} of {len(rest):,} that judge; equal files among all."
        )
    return leaks, notes


def describe_leaks(leaks: Sequence[Leak], what: str, total: int) -> str:
    """Return the alarm of images of one kind that are trained on.

    Args:
        leaks: At least one, all of this kind.
        what: What they are of.
        total: Number of all images of this kind.
    """
    near = sum(leak.how != "same file" for leak in leaks)
    first = leaks[0]
    return (
        f"Leak: {len(leaks)} of {total} images of {what} are among those trained on, {near} of them as near-copies, "
        f"such as '{first.name}' ('{first.source}', {first.how}). Figures on {what} may be better than on images that "
        "are new: take those that results.json lists out of the images to train on."
    )
