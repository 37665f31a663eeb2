"""Report on the faces that were cut: counts of crops and failures by class, and a sheet of crops to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from vfm_runtime.media.image import Pixels, open_image
from vfm_runtime.media.video import choose_evenly

from vfm.deepfake.data.crops import CutVideo, VideoJob
from vfm.deepfake.data.record import LABELS, REAL, Item
from vfm.report import draw_contact_sheet

_SHOWN = 24
_COLUMNS = 8
_CELL = 140
# Points in which the fractions of failures differ between the classes, before it is a warning.
_SKEW = 0.05


class CropCount(NamedTuple):
    """What became of the videos of one label."""

    videos: int
    without: int
    """Videos without any crop."""
    frames: int
    """Frames that were looked at."""
    crops: int
    failures: dict[str, int]
    """Frames without a crop by reason; a video that cannot be read counts once."""


def count_crops(jobs: Sequence[VideoJob], cuts: Sequence[CutVideo]) -> dict[str, CropCount]:
    """Count by label, of labels that there are, what became of each video."""
    counts = {}
    for label in LABELS:
        of_label = [c for job, c in zip(jobs, cuts, strict=True) if job.items[0].label == label]
        if of_label:
            failures: Counter[str] = Counter()
            for failure in (failure for cut in of_label for failure in cut.failures):
                failures[failure.reason] += failure.num_frames
            counts[label] = CropCount(
                videos=len(of_label),
                without=sum(not cut.items for cut in of_label),
                frames=sum(cut.num_frames for cut in of_label),
                crops=sum(len(cut.items) for cut in of_label),
                failures=dict(failures.most_common()),
            )
    return counts


def summarize(counts: dict[str, CropCount]) -> str:
    """The counts of each label as a few lines, with a warning where the classes fail unequally."""
    lines = []
    for label, count in counts.items():
        lost = format_reasons(count.failures)
        lines.append(
            f"{label}: {count.crops} crops from {count.frames} frames of {count.videos} videos or images; "
            f"{count.without} of these have none ({count.without / count.videos:.1%})"
            + (f"; frames that failed: {lost}" if lost else "")
        )
    fractions = [count.without / count.videos for count in counts.values()]
    if max(fractions) - min(fractions) > _SKEW:
        lines.append(
            "WARNING: the classes fail unequally, so a score over the rest is not the score over all. State the "
            "share that failed beside it."
        )
    return "\n".join(lines)


def format_reasons(failures: dict[str, int]) -> str:
    """Numbers of failures by reason as text."""
    return ", ".join(f"{number} {reason}" for reason, number in failures.items())


def draw_crop_sheet(items: Sequence[Item], folder: Path) -> bytes:
    """Draw crops of both labels, spread over all videos of the folder, with landmarks and masks: PNG bytes."""
    shown: list[Item] = []
    for label in LABELS:
        of_label = [item for item in items if item.label == label]
        shown += [of_label[i] for i in choose_evenly(len(of_label), _SHOWN)] if of_label else []
    captions = [
        f"{' '.join(filter(None, (item.label, item.dataset, item.method)))}\n{item.video} #{item.frame}"
        for item in shown
    ]
    return draw_contact_sheet(
        [_mark_crop(item, folder) for item in shown],
        captions,
        columns=_COLUMNS,
        cell=_CELL,
        marks=[item.label == REAL for item in shown],
    )


def _mark_crop(item: Item, folder: Path) -> Pixels:
    pixels = open_image(folder / item.path)
    if item.mask:
        weight = open_image(folder / item.mask)[..., :1] / 255 * 0.4
        pixels = (pixels * (1 - weight) + np.array((255, 0, 0)) * weight).astype(np.uint8)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    radius = max(1, picture.width // 96)
    for x, y in np.load(folder / item.landmarks).tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline="lime")
    return np.array(picture)
