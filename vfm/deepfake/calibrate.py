"""`vfm calibrate` of a detector: from what score on a video is called fake, and how often that errs on real ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.deepfake.evidence import sigmoid
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.deepfake.faces.quality import measure_sharpness
from vfm_runtime.media.image import ImageError

from vfm.data.records import Record
from vfm.deepfake.data.base import DeepfakeImages
from vfm.deepfake.data.dataset import DeepfakeRecord, require_deepfakes
from vfm.deepfake.data.record import LABELS
from vfm.deepfake.export import open_plain_data
from vfm.deepfake.groups import (
    find_table,
    fit_video_groups,
    fit_video_temperatures,
    read_video_groups,
    require_groups,
)
from vfm.deepfake.metrics import Key, Videos
from vfm.deepfake.operating_point import OPERATING_POINT, OperatingPoint
from vfm.deepfake.results import count_decisions, fingerprint_videos, join_records
from vfm.metrics.calibration import (
    TooFewError,
    bound_rate,
    count_required_samples,
    fit_conformal_threshold,
    fit_temperature,
    measure_reliability,
)
from vfm.tasks.calibration import CalibrationError, CalibrationOptions, CalibrationResult
from vfm.tasks.labeled_images import LabeledImages
from vfm.tasks.results import RESULTS_FILE, Collector, open_record, read_results
from vfm.tasks.validation import Run

OPTIONS = (
    *("fpr", "miss", "abstain", "split", "cropped", "native"),
    *("batch_size", "num_workers", "group_column", "table", "equal"),
)
"""Options of `vfm calibrate` that a detector takes."""

_SPLITS = {"val": ("val",), "test": ("test",), "all": ("train", "val", "test")}
_FPR = 0.01
_ABSTAIN = 0.01

log = logging.getLogger(__name__)


def choose_splits(options: CalibrationOptions) -> tuple[str, ...]:
    """Names of the splits that are asked for."""
    return _SPLITS[options.split or "val"]


def open_calibration_videos(path: Path, options: CalibrationOptions) -> LabeledImages:
    """Images of the videos of a folder as for DeepfakeData, or a manifest, of the splits that are asked for."""
    images = open_plain_data(path, cropped=options.cropped, native=options.native)
    images.setup({"val": "validate", "test": "test"}.get(options.split or "val"))
    names = [name for name in choose_splits(options) if images.records.get(name)]
    return LabeledImages.select_splits(images, names)


def calibrate_videos(
    source: LabeledImages, run: Run, crop: CropSpec, folder: Path, options: CalibrationOptions
) -> CalibrationResult:
    """Fit the temperature and the threshold of a detector on videos that it was not trained on.

    Raises:
        CalibrationError: The videos were tested on, or are all real or all fake, or a video is in two groups;
            or `equal` is no choice.
        DataError: The column of groups is missing, constant, or names videos.
        TooFewError: There are too few real videos for the fraction.
    """
    if options.group_column is None:
        options.refuse_ungrouped()
    if options.equal not in (None, "fpr", "calibration"):
        raise CalibrationError(
            f"--equal is '{options.equal}'. Choices: fpr (of the real videos of each group the same fraction is called "
            "fake, which is the default), calibration (a temperature for each group)."
        )
    images = cast(DeepfakeImages, source.data)
    images.batch_size, images.num_workers = options.batch_size, options.num_workers
    records, split = source.records, options.split or "val"
    require_untested(records, folder)
    require_both(records, split)
    splits = list(dict.fromkeys(name for name, _ in source.positions))
    by_video = _read_groups(source, options)  # before what takes long
    evidence = collect_evidence(run, crop, images, splits)
    fpr = _FPR if options.fpr is None else options.fpr
    rules = fit_decision(
        evidence,
        fpr=fpr,
        miss=options.miss,
        abstain=_ABSTAIN if options.abstain is None else options.abstain,
    )
    rules = replace(rules, calibration=fingerprint_videos(records))
    groups = None
    if options.group_column is not None:
        videos, column = evidence.videos, options.group_column
        names = [by_video[key] for key in videos.keys]
        if options.equal == "calibration":
            groups = fit_video_temperatures(videos, names, rules, column)
        else:
            groups = fit_video_groups(videos, names, rules, fpr, column)
    details = {"split": split, **describe_calibration(evidence, rules)}
    files = {OPERATING_POINT: OperatingPoint(rules, groups).to_dict()}
    lines = [*_report_lines(details, rules), *([] if groups is None else groups.list_lines())]
    return CalibrationResult(source, details, lines, files)


def _read_groups(source: LabeledImages, options: CalibrationOptions) -> dict[Key, str]:
    """Return the group of each video; none where no column is named."""
    if options.group_column is None:
        return {}
    images = cast(DeepfakeImages, source.data)
    groups = read_video_groups(
        require_deepfakes(source.records),
        options.group_column,
        options.table or find_table(images),
        "--group_column",
        source=type(images).__name__,
    )
    require_groups(groups.values(), options.group_column, "--group_column")
    return groups


def require_untested(records: Sequence[Record], folder: Path) -> None:
    """Refuse the videos of the last test, whatever data they were of.

    Raises:
        CalibrationError: They are the test videos of `results.json`.
    """
    tested = read_results(folder).get("test", {}).get("videos_fingerprint")
    if tested is not None and tested == fingerprint_videos(records):
        raise CalibrationError(
            f"These are the videos of the test in {folder / RESULTS_FILE}. A threshold fitted on them would make the "
            "test prove nothing. Calibrate on others: --split val, or other data."
        )


def require_both(records: Sequence[Record], split: str) -> None:
    """Refuse images of one label.

    Raises:
        CalibrationError: They are all real, or all fake.
    """
    labels = {record.label for record in records}
    if len(labels) < 2:
        only = LABELS[int(labels.pop())]  # type: ignore[arg-type]  # one label an image
        raise CalibrationError(
            f"All {len(records)} images of {split} are {only}. The threshold is set by reals, the temperature by both: "
            "give data with real and fake videos, or another --split."
        )


class CalibrationEvidence(NamedTuple):
    """What a model says of the calibration data. V videos."""

    videos: Videos
    distances: NDArray[np.float64]
    """[V], median over the frames of the features' distance from those of the training."""
    sharpness: NDArray[np.float64]
    """[V], of one crop of each; NaN where it could not be opened again."""
    identities: list[str]
    """[V], connected identities."""
    num_frames: int
    """Most frames that a video has."""
    num_lost: int
    """Videos that got no score."""


def collect_evidence(
    run: Run, crop: CropSpec, images: DeepfakeImages, splits: Sequence[str]
) -> CalibrationEvidence:
    """Score the images of some splits.

    Args:
        run: The model, as a function of its inputs.
        crop: How the images that it was trained on were cut out.
        images: Images that were cut out in the same way, with the model's `preprocess`.
        splits: Names of the splits, such as `val`.

    Raises:
        CalibrationError: No image can be read.
    """
    collector = Collector()
    records: list[DeepfakeRecord] = []
    for split in splits:
        for batch in images.build_plain_loader(split):
            if len(batch["image"]):
                outputs = run({"pixels": batch["image"].numpy()})
                values = {name: torch.from_numpy(outputs[name]) for name in ("logits", "distances")}
                collector.add(batch["index"] + len(records), values)
        records += images.list_records(split)
    predictions = collector.gather()
    if predictions is None:
        raise CalibrationError(
            "None of the images can be read. Check that they are where the manifest says."
        )
    scored = join_records(predictions, records, by_frame=crop.policy == "all")
    videos = scored.videos
    order = np.argsort(videos.of_frame, kind="stable")
    frames = np.split(order, np.cumsum(videos.num_frames)[:-1])
    middle = [scored.records[rows[len(rows) // 2]] for rows in frames]
    # A whole image's sharpness is not that of its tiles, by which it is judged.
    native = crop.source == "native"
    return CalibrationEvidence(
        videos=videos,
        distances=np.array([np.median(scored.distances[rows].astype(float)) for rows in frames]),
        sharpness=np.array([math.nan if native else _measure(record, images) for record in middle]),
        identities=[record.component for record in middle],
        num_frames=max(1, int(videos.num_frames.max()) // (crop.tiles if native else 1)),
        num_lost=len(scored.lost),
    )


def _measure(record: Record, images: DeepfakeImages) -> float:
    limits = None if images.preprocess is None else images.preprocess.value_range
    try:
        return measure_sharpness(open_record(record, limits))
    except ImageError:
        return math.nan


def fit_decision(
    evidence: CalibrationEvidence, *, fpr: float, miss: float | None, abstain: float
) -> Decision:
    """The rules of the decision that the evidence supports.

    Args:
        evidence: What the model says of videos that it has not seen.
        fpr: Fraction of real videos that may be called fake.
        miss: Fraction of fake videos that may be called real; None for no answer in between.
        abstain: Fraction of videos that each rule of doubt may leave undecided; 0 for none.

    Raises:
        TooFewError: There are too few real, or fake, videos.
        ValueError: Reals have the higher logits, or a fraction is not one.
    """
    videos = evidence.videos
    # First, since it is what most often fails: the message says how many it takes.
    above = fit_conformal_threshold(videos.logits[~videos.fake], fpr, "real videos")
    temperature = fit_temperature(videos.logits, videos.fake)
    threshold = above / temperature
    real_below = None
    if miss is not None:
        below = -fit_conformal_threshold(-videos.logits[videos.fake], miss, "fake videos")
        # Where the limits cross, nothing lies between them: what is not fake is real.
        real_below = below / temperature if below < above else None
    moving = videos.num_frames > 1
    blur = -evidence.sharpness[np.isfinite(evidence.sharpness)]
    least = _fit_limit(blur, abstain, "min_sharpness")
    return Decision(
        num_frames=evidence.num_frames if evidence.num_frames > 1 else Decision.num_frames,
        temperature=temperature,
        threshold=threshold,
        real_below=real_below,
        fpr=fpr,
        num_reals=int((~videos.fake).sum()),
        max_distance=_fit_limit(evidence.distances, abstain, "max_distance"),
        max_spread=_fit_limit(videos.spread[moving], abstain, "max_spread"),
        min_sharpness=None if least is None else -least,
    )


def describe_calibration(evidence: CalibrationEvidence, rules: Decision) -> dict[str, Any]:
    """What the rules were fitted on, and how they do there, ready for JSON.

    `fpr_at_most` bounds, with 95 % confidence, the fraction of such reals that is called fake at this very threshold:
    the mean over calibration sets is `fpr`, one of them may be luckier than another.
    """
    videos = evidence.videos
    calibrated = videos.logits / rules.temperature
    reals = np.flatnonzero(~videos.fake)
    alarms = int((calibrated[reals] > rules.limit).sum())
    names = [key[0] for key in videos.keys]
    return {
        "num_videos": len(videos.keys),
        "num_reals": len(reals),
        "num_fakes": len(videos.keys) - len(reals),
        "num_real_identities": len({evidence.identities[i] for i in reals}),
        "num_lost": evidence.num_lost,
        "fpr_at_most": bound_rate(alarms, len(reals)),
        "decisions": count_decisions(calibrated, videos.fake, rules),
        "per_dataset": [
            {"dataset": name}
            | count_decisions(calibrated[chosen], videos.fake[chosen], rules)
            | {"num_reals": int((~videos.fake[chosen]).sum())}
            for name in dict.fromkeys(names)
            if (chosen := np.array(names) == name).any()
        ],
        "before": measure_reliability(videos.logits, videos.fake),
        "after": measure_reliability(calibrated, videos.fake),
        "decision": rules.to_dict(),
    }


def _fit_limit(values: NDArray[np.float64], fraction: float, name: str) -> float | None:
    """What at most this fraction of such videos exceeds; None where nothing varies, or there are too few to say."""
    if not fraction or not len(values) or not np.ptp(values):
        return None
    try:
        return fit_conformal_threshold(values, fraction, "videos")
    except TooFewError as error:
        log.warning("No rule %s: %s", name, error)
        return None


def _report_lines(details: dict[str, Any], rules: Decision) -> list[str]:
    fpr, counts = rules.fpr or 0.0, details["decisions"]
    lines = [
        f"{details['num_videos']} videos: {details['num_reals']} real, {details['num_fakes']} fake.",
        f"Temperature {rules.temperature:.3g}: expected calibration error {details['before']['ece']:.3f}, now "
        f"{details['after']['ece']:.3f}.",
        f"Threshold: a score of {sigmoid(rules.limit):.4f}. Of real videos like these at most "
        f"{100 * fpr:g} % are called fake, on average; of this threshold {details['fpr_at_most']:.1%} at most, with "
        "95 % confidence.",
        f"Of the fakes here {counts['tpr']:.1%} are called fake, {counts['missed']:.1%} real.",
    ]
    if details["num_lost"]:
        lines.append(f"{details['num_lost']} videos got no score, and set nothing.")
    if details["num_real_identities"] < count_required_samples(fpr):
        lines.append(
            f"Note: the real videos show only {details['num_real_identities']} people or groups of people, and videos "
            "of one person err together: the rate for other people is less sure than it looks."
        )
    return lines
