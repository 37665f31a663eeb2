"""Diagnosis of data: every check of `vfm doctor`, one after another, and the figures that rules are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.media.image import ImageError, open_image

from vfm.audit.doctor.box_errors import BoxErrors, judge_boxes
from vfm.audit.doctor.facts import (
    BoxDoubt,
    OddFile,
    find_like_names,
    find_outliers,
    list_box_doubts,
    list_odd_files,
)
from vfm.audit.doctor.features import THUMBNAILS, describe_thumbnails, embed_records, open_tower
from vfm.audit.doctor.label_errors import LabelErrors, LabelSuspect, find_label_errors
from vfm.audit.doctor.source import DoctorSource, choose_evenly
from vfm.audit.null_score import NullScore, measure_null_scores, read_null_values
from vfm.audit.source import AuditedModel
from vfm.data.records import Record, list_labels, read_source
from vfm.search.image_duplicates import (
    DuplicatePair,
    find_duplicate_images,
    list_leaks,
    number_groups,
)
from vfm.search.image_scan import Scan, scan_images, shrink_image

MOST_CHECKED = 100
"""Images in the list of those to check first."""
VALUES = (
    *("unreadable", "odd_files", "duplicates", "leaks", "key_leaks", "shared", "label_errors"),
    *("box_doubts", "box_errors", "like_names", "null_auroc"),
)
"""Names of the figures that rules are about; duplicates and label errors are fractions, the others counts."""
MOST_BOXES = 20_000
"""Boxes whose labels are judged, of images spread evenly."""
_LEAST_BOX = 8.0
_CONTRADICTION = 0.5
_LEAST_DOUBT = 0.05
"""Probability of an error below which no one need look."""
_LEAST_SKILL = 0.3
"""Fraction of the way from chance to perfect that a probe must have come before it may doubt a label."""

Progress = Callable[[str], None]


class Check(NamedTuple):
    """An image that a person should look at."""

    position: int
    reason: str
    probability: float
    """How likely it is that something is wrong."""
    box: tuple[float, ...] = ()
    """Corners of the box in question, in pixels."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What `vfm doctor` looks at, and by what.

    Args:
        key: Column of a table with what must not be divided by a split, such as a patient.
        path_column: Column of a table with the paths of the images.
        label_column: Column of a table with their labels; where there is none, the images have none.
        label_separator: Text between the labels of a cell, such as "|", where several labels, or none, may apply.
        model: Model whose embeddings find near-copies, label errors and outliers: a backbone, checkpoint or bundle, as
            for vfm embed. By default thumbnails do, which take no weights.
        base: File of the backbone's weights, in place of timm's.
        image_size: Side of a backbone's input in pixels.
        detector: Checkpoint or bundle that finds objects, by which boxes are doubted: missing, shifted, misnamed.
        label_errors: Doubt labels by cross-validated probes; takes cleanlab, of the extra doctor.
        fix: Also write a cleaned table; no image is touched.
        fail_on: Rules that must hold, else the exit status is 1, such as "leaks<1,label_errors<0.02".
        max_files: Most files whose metadata, borders and look are tried on the labels.
        batch_size: Images that go through the model at once.
        device: cpu, cuda, or auto for CUDA where there is one.
        seed: Seed of the choice of files, folds and intervals.
    """

    key: str | None = None
    path_column: str = "path"
    label_column: str = "label"
    label_separator: str | None = None
    model: str | None = None
    base: Path | None = None
    image_size: int | None = None
    detector: Path | None = None
    label_errors: bool = True
    fix: bool = False
    fail_on: str = ""
    max_files: int = 2000
    batch_size: int = 32
    device: str = "auto"
    seed: int = 0


@dataclass
class Diagnosis:
    """What is known of the N images of a data set."""

    source: DoctorSource
    scan: Scan
    """Of all images, and after them those of the other data set."""
    other: DoctorSource | None = None
    pairs: list[DuplicatePair] = field(default_factory=list)
    """Images that are one, within the data set."""
    leaks: list[DuplicatePair] = field(default_factory=list)
    """Those in two splits."""
    key_leaks: list[str] = field(default_factory=list)
    """Keys in two splits."""
    shared: list[DuplicatePair] = field(default_factory=list)
    """Images of the data set, and index of the one in the other that they are."""
    odd: list[OddFile] = field(default_factory=list)
    box_doubts: list[BoxDoubt] = field(default_factory=list)
    box_errors: BoxErrors | None = None
    like_names: list[tuple[str, str]] = field(default_factory=list)
    null_scores: dict[str, NullScore] = field(default_factory=dict)
    labels: LabelErrors | None = None
    samples: list[tuple[int, tuple[float, ...]]] = field(default_factory=list)
    """Image, and box if it is one, of each sample of `labels`."""
    checks: list[Check] = field(default_factory=list)
    """Images to look at first, the most doubtful first."""
    outliers: list[tuple[int, float]] = field(default_factory=list)
    features: str = THUMBNAILS
    notes: list[str] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """Number of images N."""
        return len(self.source.records)

    @property
    def flagged(self) -> list[LabelSuspect]:
        """Labels that are likely wrong."""
        return [] if self.labels is None else self.labels.flagged

    def compute_values(self) -> dict[str, float | None]:
        """Return the figures that rules of `--fail-on` are about; None where something was not looked at."""
        copies = {pair.second for pair in self.pairs}
        labels = self.labels
        score = self.null_scores.get("all")
        figures: tuple[float | None, ...] = (
            float(sum(bool(f.reason) for f in self.scan.files[: self.num_images])),
            float(len(self.odd)),
            len(copies) / max(self.num_images, 1),
            float(len({pair.second for pair in self.leaks})),
            float(len(self.key_leaks)) if self.source.keys else None,
            None if self.other is None else float(len({p.first for p in self.shared})),
            None if labels is None else labels.num_errors / labels.num_judged,
            float(len(self.box_doubts)) if self.source.has_boxes else None,
            None if self.box_errors is None else float(len(self.box_errors.likely)),
            float(len(self.like_names)),
            None if score is None else score.auroc.value,
        )
        return dict(zip(VALUES, figures, strict=True))


def diagnose(
    source: DoctorSource,
    options: DoctorOptions,
    *,
    other: DoctorSource | None = None,
    detector: AuditedModel | None = None,
    progress: Progress = lambda _: None,
) -> Diagnosis:
    """Look at everything in a data set that can be wrong before training.

    Args:
        source: Images of the data set.
        options: What is looked at.
        other: Data set in which none of them should be.
        detector: Model that finds objects, by which the boxes are doubted.
        progress: Told what is being done.

    Raises:
        MissingPackageError: Labels are to be judged, and cleanlab is not installed.
        OptionError: The model gives no embeddings.
    """
    records = source.records + (other.records if other is not None else [])
    count = len(source.records)
    targets = source.target
    has_labels = bool(source.labels) and (targets.ndim == 2 or bool((targets >= 0).any()))
    classes = [min(list_labels(record), default=-1) for record in source.records]
    probed = choose_evenly(classes, options.max_files, options.seed) if has_labels else []
    scan = scan_images(records, with_values=probed, read_values=read_null_values, progress=progress)
    result = Diagnosis(source, scan, other, notes=[*source.notes])
    features = _compute_features(result, records, options, progress)
    vectors = features if options.model is not None else None
    pairs, notes = find_duplicate_images(scan, vectors, progress=progress)
    result.notes += notes
    result.pairs = [pair for pair in pairs if max(pair[:2]) < count]
    result.shared = [
        DuplicatePair(min(pair[:2]), max(pair[:2]), pair.how, pair.similarity)
        for pair in pairs
        if min(pair[:2]) < count <= max(pair[:2])
    ]
    result.leaks = list_leaks(result.pairs, source.splits)
    result.key_leaks = list_key_leaks(source)
    result.odd = [odd for odd in list_odd_files(scan) if odd.position < count]
    result.box_doubts = list_box_doubts(source)
    result.like_names = find_like_names(source.labels)
    read = scan.readable[:count]
    probed = [i for i in probed if read[i] and (targets.ndim == 2 or targets[i] >= 0)]
    if probed:
        rows = [scan.files[i].values or {} for i in probed]
        groups = _name_groups(result)
        result.null_scores = measure_null_scores(
            rows, targets[probed], keys=[groups[i] for i in probed], seed=options.seed
        )
    if has_labels and options.label_errors:
        _judge_labels(result, features, options, progress)
    if detector is not None:
        progress(f"finding objects in {len(source.records):,} images")
        result.box_errors = judge_boxes(detector, source, read, options.batch_size)
        result.notes += result.box_errors.notes
    result.checks = list_checks(result)
    rows_read = np.flatnonzero(read)
    if len(rows_read):
        result.outliers = find_outliers(features[rows_read], rows_read.tolist())
    return result


def list_checks(result: Diagnosis) -> list[Check]:
    """List the images to look at first, at most 100: likely errors of labels and boxes, copies that contradict."""
    checks: dict[tuple[int, tuple[float, ...]], Check] = {}
    names = result.source.labels
    for suspect in result.labels.suspects if result.labels is not None else []:
        index, box = result.samples[suspect.position]
        check = Check(index, suspect.describe(names), suspect.error, box)
        checks.setdefault((index, box), check)
        if len(checks) >= 3 * MOST_CHECKED:
            break
    for one in result.box_errors.likely if result.box_errors is not None else []:
        check = Check(one.position, one.describe(names), one.doubt, one.box)
        checks.setdefault((one.position, one.box), check)
    for pair in result.pairs if not result.source.has_boxes else []:
        labels = [result.source.describe_labels(end) for end in pair[:2]]
        if all(labels) and labels[0] != labels[1]:
            for index in pair[:2]:
                text = f"{pair.how} with another label: {labels[0]} and {labels[1]}"
                last = checks.get((index, ()))
                if last is None or last.probability < _CONTRADICTION:
                    checks[index, ()] = Check(index, text, _CONTRADICTION)
    doubtful = [check for check in checks.values() if check.probability >= _LEAST_DOUBT]
    return sorted(doubtful, key=lambda check: -check.probability)[:MOST_CHECKED]


def open_check_picture(record: Record, box: Sequence[float] = ()) -> NDArray[np.uint8]:
    """Return an image for a contact sheet, small; of a box its surroundings; a gray field where it cannot be read."""
    try:
        pixels = open_image(read_source(record))
    except (ImageError, OSError):
        return np.full((64, 64, 3), 200, np.uint8)
    if len(box):
        pixels = _cut_box(pixels, box)
    return shrink_image(pixels, 256)


def list_key_leaks(source: DoctorSource) -> list[str]:
    """Return the keys, such as patients, whose images are in two splits, sorted."""
    splits: dict[str, set[str]] = {}
    for key, split in zip(source.keys, source.splits, strict=bool(source.keys)):
        if key and split:
            splits.setdefault(key, set()).add(split)
    return sorted(key for key, names in splits.items() if len(names) > 1)


def _compute_features(
    result: Diagnosis, records: Sequence[Record], options: DoctorOptions, progress: Progress
) -> NDArray[np.float32]:
    scan = result.scan
    if options.model is None:
        return describe_thumbnails(scan.gray, scan.colors)
    result.features = f"embeddings of {options.model}"
    tower = open_tower(
        options.model, base=options.base, image_size=options.image_size, device=options.device
    )
    rows = np.flatnonzero(scan.readable)
    computed = embed_records(
        tower, [records[i] for i in rows.tolist()], options.batch_size, progress
    )
    features = np.zeros((len(records), computed.shape[1]), np.float32)
    features[rows] = computed
    return features


def _judge_labels(
    result: Diagnosis, features: NDArray[np.float32], options: DoctorOptions, progress: Progress
) -> None:
    """Find label errors of images, or of boxes by what is inside of them."""
    source, scan = result.source, result.scan
    read = scan.readable[: result.num_images]
    if source.has_boxes:
        samples, features, target = _describe_boxes(source, read, options, progress)
    else:
        indices = np.flatnonzero(read).tolist()
        if not source.multilabel:
            indices = [i for i in indices if source.target[i] >= 0]
        samples = [(i, ()) for i in indices]
        features, target = features[indices], source.target[indices]
    if not samples:
        return
    groups = _name_groups(result)
    keys = [groups[i] for i, _ in samples]
    labels = find_label_errors(
        features, target, keys, len(source.labels), seed=options.seed, progress=progress
    )
    if labels is None:
        result.notes.append(
            "Label errors are not looked for: it takes two classes with five images each, copies counted once; where "
            "several labels may apply, one that five images have and five have not."
        )
    elif labels.skill < _LEAST_SKILL:
        result.notes.append(
            f"Labels are not doubted: a probe of {result.features} says {labels.accuracy:.1%} of them too, where the "
            f"commonest class is {labels.majority:.1%}, so it knows too little of these classes. Name a --model that "
            "knows more."
        )
    else:
        result.samples, result.labels = samples, labels


def _name_groups(result: Diagnosis) -> list[str]:
    """Return what must stay together of each image: its key, else the copies of it."""
    groups = number_groups(result.pairs, result.num_images).tolist()
    keys = result.source.keys or [""] * result.num_images
    return [key or f"copies {group}" for key, group in zip(keys, groups, strict=True)]


def _describe_boxes(
    source: DoctorSource, read: NDArray[np.bool_], options: DoctorOptions, progress: Progress
) -> tuple[list[tuple[int, tuple[float, ...]]], NDArray[np.float32], NDArray[np.int64]]:
    """Return boxes with image and corners, features of what is inside of them, [M, D], and their classes."""
    usable = [i for i, r in enumerate(source.records) if read[i] and r.objects is not None]
    samples: list[tuple[int, tuple[float, ...]]] = []
    target: list[int] = []
    for turn in np.random.default_rng(options.seed).permutation(len(usable)).tolist():
        record = source.records[usable[turn]]
        assert record.objects is not None
        for corners, label in zip(
            record.objects.corners.tolist(), list_labels(record), strict=True
        ):
            if min(corners[2] - corners[0], corners[3] - corners[1]) >= _LEAST_BOX:
                samples.append((usable[turn], tuple(corners)))
                target.append(label)
        if len(samples) >= MOST_BOXES:
            break
    crops: list[Record] = []
    opened: tuple[int, NDArray[np.uint8]] | None = None
    for index, box in samples:
        if opened is None or opened[0] != index:
            opened = (index, open_image(read_source(source.records[index])))
        crops.append(Record(shrink_image(_cut_box(opened[1], box, 0.1), 224), -1, str(len(crops))))
    if options.model is None:
        scan = scan_images(crops, progress=progress)
        features = describe_thumbnails(scan.gray, scan.colors)
    else:
        tower = open_tower(
            options.model, base=options.base, image_size=options.image_size, device=options.device
        )
        features = embed_records(tower, crops, options.batch_size, progress)
    return samples, features, np.array(target, np.int64)


def _cut_box(
    pixels: NDArray[np.uint8], box: Sequence[float], margin: float = 0.3
) -> NDArray[np.uint8]:
    """Return a box of an image with some of its surroundings."""
    x0, y0, x1, y1 = place_cut(pixels, box, margin)
    return np.ascontiguousarray(pixels[y0:y1, x0:x1])


def place_cut(
    pixels: NDArray[np.uint8], box: Sequence[float], margin: float
) -> tuple[int, int, int, int]:
    """Return the corners of a box with a margin, a fraction of its sides, within an image, in whole pixels."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    across, down = margin * (right - left), margin * (bottom - top)
    return (
        max(0, int(left - across)),
        max(0, int(top - down)),
        min(width, int(right + across) + 1),
        min(height, int(bottom + down) + 1),
    )


def summarize(result: Diagnosis) -> dict[str, Any]:
    """Return what `doctor.json` holds."""
    source, count = result.source, result.num_images

    def name(index: int) -> str:
        if index >= count and result.other is not None:
            return result.other.records[index - count].name
        return source.records[index].name

    def describe(pair: DuplicatePair) -> dict[str, Any]:
        ends = {"first": name(pair.first), "second": name(pair.second)}
        splits = [source.splits[end] if end < count else "" for end in pair[:2]]
        return ends | {"how": pair.how, "similarity": round(pair.similarity, 4), "splits": splits}

    labels = result.labels
    return {
        "data": str(source.path),
        "format": source.format,
        "num_images": count,
        "classes": list(source.labels),
        "features": result.features,
        "values": result.compute_values(),
        "odd_files": [{"image": name(odd.position), "problem": odd.problem} for odd in result.odd],
        "duplicates": [describe(pair) for pair in result.pairs],
        "leaks": [describe(pair) for pair in result.leaks],
        "key_leaks": result.key_leaks,
        "against": None if result.other is None else str(result.other.path),
        "shared": [describe(pair) for pair in result.shared],
        "label_errors": None
        if labels is None
        else {
            "num_judged": labels.num_judged,
            "num_left_out": labels.num_left_out,
            "estimated": labels.num_errors,
            "probe": labels.probe,
            "probe_accuracy": labels.accuracy,
            "suspects": [
                {
                    "image": name(result.samples[one.position][0]),
                    "box": list(result.samples[one.position][1]),
                    "stated": source.labels[one.stated] if one.stated >= 0 else None,
                    "suggested": source.labels[one.suggested] if one.suggested >= 0 else None,
                    "probability": round(one.error, 4),
                }
                for one in labels.suspects[: max(MOST_CHECKED, labels.num_errors)]
            ],
        },
        "check_first": {
            "expected_errors": round(sum(check.probability for check in result.checks), 1),
            "images": [
                {
                    "image": name(check.position),
                    "box": list(check.box),
                    "reason": check.reason,
                    "probability": round(check.probability, 4),
                }
                for check in result.checks
            ],
        },
        "box_errors": None
        if result.box_errors is None
        else {
            "num_judged": result.box_errors.num_judged,
            "suspects": [
                {
                    "image": name(one.position),
                    "problem": one.problem,
                    "box": list(one.box),
                    "suggested_box": list(one.suggested_box),
                    "stated": source.labels[one.label] if one.label >= 0 else None,
                    "suggested": source.labels[one.suggested_label],
                    "doubt": round(one.doubt, 4),
                }
                for one in result.box_errors.suspects[
                    : max(MOST_CHECKED, result.box_errors.num_judged // 10)
                ]
            ],
        },
        "box_doubts": [doubt._asdict() for doubt in result.box_doubts],
        "like_names": [list(pair) for pair in result.like_names],
        "null_scores": {part: score.to_dict() for part, score in result.null_scores.items()},
        "outliers": [{"image": name(i), "similarity": round(v, 4)} for i, v in result.outliers],
        "notes": result.notes,
    }
