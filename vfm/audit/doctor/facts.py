"""Facts of data: odd files, imbalance, class names that are nearly the same, doubtful boxes, outliers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vfm.audit.doctor.source import DoctorSource
from vfm.data.records import list_labels
from vfm.search.image_scan import Scan
from vfm.search.neighbor_graph import build_graph

TINY_SIDE, HUGE_PIXELS = 32, 50_000_000
"""Side in pixels below which a file is tiny, and pixels above which it is huge."""
_USUAL_MODES = ("RGB", "L", "P")
_TINY_BOX = 4.0
_SAME_BOX = 0.9
_NEIGHBORS = 5
_MOST_NAMES = 2000
_RATIO = 0.85

Row = dict[str, Any]


class OddFile(NamedTuple):
    """A file that is not as the others are."""

    position: int
    problem: str


class BoxDoubt(NamedTuple):
    """A box that may not be meant so."""

    image: str
    label: str
    box: str
    problem: str


def list_odd_files(scan: Scan) -> list[OddFile]:
    """List files that cannot be read, are tiny or huge, or have pixels of an unusual kind."""
    usual = {file.mode for file in scan.files if file.mode in _USUAL_MODES}
    odd = []
    for index, file in enumerate(scan.files):
        height, width = file.size
        if file.reason:
            odd.append(OddFile(index, f"unreadable: {file.reason}"))
            continue
        if file.format != "array" and min(file.size) < TINY_SIDE:
            odd.append(OddFile(index, f"tiny: {width} x {height} pixels"))
        if height * width > HUGE_PIXELS:
            odd.append(OddFile(index, f"huge: {width} x {height} pixels"))
        if file.mode not in usual:
            odd.append(OddFile(index, f"odd mode: {file.mode}"))
    return odd


def count_formats(scan: Scan) -> list[Row]:
    """Return a row for each format and mode: images, and the sizes and bytes of most of them."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, file in enumerate(scan.files):
        if not file.reason:
            groups.setdefault((file.format, file.mode), []).append(index)
    rows = []
    for (name, mode), members in sorted(groups.items(), key=lambda item: -len(item[1])):
        sides = np.array([scan.files[i].size for i in members])
        low, middle, high = np.quantile(sides.prod(axis=1), [0, 0.5, 1], method="nearest")
        example = [
            "{1} x {0}".format(*sides[np.flatnonzero(sides.prod(axis=1) == value)[0]])
            for value in (low, middle, high)
        ]
        size = np.median([scan.files[i].num_bytes for i in members])
        names = ("smallest", "median", "largest")
        rows.append(
            {"format": name, "mode": mode, "images": len(members)}
            | dict(zip(names, example, strict=True))
            | {"median kB": float(size) / 1000}
        )
    return rows


def count_classes(source: DoctorSource) -> list[Row]:
    """Return a row for each class, the most frequent first: images, or boxes, of each split."""
    counts: Counter[tuple[int, str]] = Counter()
    for record, split in zip(source.records, source.splits, strict=True):
        counts.update((label, split or "all") for label in list_labels(record))
    splits = list(dict.fromkeys(split or "all" for split in source.splits))
    rows = [
        {"class": name}
        | {split: counts[label, split] for split in splits}
        | ({"sum": sum(counts[label, split] for split in splits)} if len(splits) > 1 else {})
        for label, name in enumerate(source.labels)
    ]
    return sorted(rows, key=lambda row: -sum(v for v in row.values() if isinstance(v, int)))


def find_like_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of class names that differ by case, separators, a plural or a letter: perhaps one class."""
    if len(names) > _MOST_NAMES:
        return []
    plain = ["".join(c for c in name.casefold() if c.isalnum()) for name in names]
    pairs = []
    for one in range(len(names)):
        for other in range(one + 1, len(names)):
            a, b = plain[one], plain[other]
            # Numbers tell classes apart: part 11 is not part 12.
            numbers = ["".join(c for c in text if c.isdigit()) for text in (a, b)]
            short = min(len(a), len(b)) < 5
            if numbers[0] != numbers[1] or abs(len(a) - len(b)) > 1 or (short and a != b):
                continue
            ratio = SequenceMatcher(None, a, b, autojunk=False)
            if a == b or (ratio.quick_ratio() > _RATIO and ratio.ratio() > _RATIO):
                pairs.append((names[one], names[other]))
    return pairs


def list_box_doubts(source: DoctorSource) -> list[BoxDoubt]:
    """List boxes that reading changed or dropped, tiny ones, and pairs on one object."""
    doubts = [BoxDoubt(fix.image, fix.label, fix.box, fix.done) for fix in source.fixes]
    for record in source.records:
        if record.objects is None or not len(record.objects.corners):
            continue
        corners = record.objects.corners.astype(float)
        labels = [source.labels[k] for k in list_labels(record)]
        texts = [", ".join(f"{value:g}" for value in box) for box in corners]
        sides = corners[:, 2:] - corners[:, :2]
        for i in np.flatnonzero(sides.min(axis=1) < _TINY_BOX).tolist():
            width, height = sides[i]
            doubts.append(
                BoxDoubt(record.name, labels[i], texts[i], f"tiny: {width:.3g} x {height:.3g}")
            )
        for i, j in np.argwhere(np.triu(compute_iou(corners), 1) > _SAME_BOX).tolist():
            same = labels[i] == labels[j]
            what = "twice" if same else f"as {labels[j]} too"
            doubts.append(BoxDoubt(record.name, labels[i], texts[i], f"marked {what}"))
    return doubts


def find_outliers(
    features: NDArray[np.float32], indices: Sequence[int], most: int = 24
) -> list[tuple[int, float]]:
    """Return the images that are least like any other, with the mean cosine to their nearest, the least first.

    Args:
        features: Features of some images, [N, D].
        indices: Index of each of them.
        most: Number of images to return.
    """
    if len(features) <= _NEIGHBORS:
        return []
    units = features - features.mean(axis=0)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    graph = build_graph(units.astype(np.float32), _NEIGHBORS)
    means = np.where(graph.neighbors >= 0, graph.similarity, 0).mean(axis=1)
    return [(indices[i], float(means[i])) for i in np.argsort(means, kind="stable")[:most].tolist()]


def compute_iou(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of every two boxes, [M, M]."""
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(axis=2)
    areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    iou: NDArray[np.float64] = inter / np.maximum(areas[:, None] + areas[None] - inter, 1e-9)
    return iou
