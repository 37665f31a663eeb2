"""What became of the videos whose faces were cut: counts by class, and a sheet of crops to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from vfm_runtime.media.image import Pixels, open_image
from vfm_runtime.media.video import choose_evenly

from vfm.deepfake.data.crops import Cut, Job
from vfm.deepfake.data.record import LABELS, REAL, Item
from vfm.report import draw_contact_sheet

_SHOWN = 24
_COLUMNS = 8
_CELL = 140
# Points in which the shares of failures differ between the classes, before it is a warning.
_SKEW = 0.05


class Count(NamedTuple):
    """What became of the videos of one label."""

    videos: int
    without: int
    """Videos without any crop."""
    frames: int
    """Frames that were looked at."""
    crops: int
    failures: dict[str, int]
    """Frames without a crop by reason; a video that cannot be read counts once."""


def count(jobs: Sequence[Job], cuts: Sequence[Cut]) -> dict[str, Count]:
    """Counts by label, of labels that there are.

    Args:
        jobs: The videos.
        cuts: What became of each.
    """
    counts = {}
    for label in LABELS:
        own = [cut for job, cut in zip(jobs, cuts, strict=True) if job.items[0].label == label]
        if own:
            failures: Counter[str] = Counter()
            for cut in own:
                for failure in cut.failures:
                    failures[failure.reason] += failure.num_frames
            counts[label] = Count(
                videos=len(own),
                without=sum(not cut.items for cut in own),
                frames=sum(cut.num_frames for cut in own),
                crops=sum(len(cut.items) for cut in own),
                failures=dict(failures.most_common()),
            )
    return counts


def summary(counts: dict[str, Count]) -> str:
    """The counts as a few lines, with a warning where the classes fail unequally.

    Args:
        counts: By label.
    """
    lines = []
    for label, found in counts.items():
        lost = reasons(found.failures)
        lines.append(
            f"{label}: {found.crops} crops from {found.frames} frames of {found.videos} videos or images; "
            f"{found.without} of these have none ({found.without / found.videos:.1%})"
            + (f"; frames that failed: {lost}" if lost else "")
        )
    shares = [found.without / found.videos for found in counts.values()]
    if max(shares) - min(shares) > _SKEW:
        lines.append(
            "WARNING: the classes fail unequally, so a score over the rest is not the score over all. State the "
            "share that failed beside it."
        )
    return "\n".join(lines)


def reasons(failures: dict[str, int]) -> str:
    """Numbers of failures as text.

    Args:
        failures: By reason.
    """
    return ", ".join(f"{number} {reason}" for reason, number in failures.items())


def crop_sheet(items: Sequence[Item], folder: Path) -> bytes:
    """Crops of both labels, spread over all videos, with their landmarks and masks: PNG bytes.

    Args:
        items: The crops.
        folder: Where their relative paths start.
    """
    shown: list[Item] = []
    for label in LABELS:
        own = [item for item in items if item.label == label]
        shown += [own[index] for index in choose_evenly(len(own), _SHOWN)] if own else []
    return draw_contact_sheet(
        [_marked(item, folder) for item in shown],
        [_caption(item) for item in shown],
        columns=_COLUMNS,
        cell=_CELL,
        marks=[item.label == REAL for item in shown],
    )


def _marked(item: Item, folder: Path) -> Pixels:
    pixels = open_image(folder / item.path)
    if item.mask:
        share = open_image(folder / item.mask)[..., :1] / 255 * 0.4
        pixels = (pixels * (1 - share) + np.array((255, 0, 0)) * share).astype(np.uint8)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    radius = max(1, picture.width // 96)
    for x, y in np.load(folder / item.landmarks).tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline="lime")
    return np.array(picture)


def _caption(item: Item) -> str:
    names: Iterable[str] = filter(None, (item.label, item.dataset, item.method))
    return f"{' '.join(names)}\n{item.video} #{item.frame}"
