"""`vfm calibrate`: from what score on a video is called fake, and how often that errs on real ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.deepfake.decision import Decision

from vfm.data.dataset import Record
from vfm.deepfake.data.base import FakeImages
from vfm.deepfake.data.record import LABELS
from vfm.deepfake.evidence import CalibrationError, Evidence, gather
from vfm.deepfake.results import OPERATING_POINT, decisions, videos_fingerprint
from vfm.deepfake.robustness.command import audited_data, open_detector
from vfm.metrics.calibration import (
    TooFewError,
    conformal_threshold,
    fit_temperature,
    largest_rate,
    least_number,
    reliability,
    sigmoid,
)
from vfm.tasks.classification.results import RESULTS_FILE
from vfm.tasks.labelled_images import ValidationError
from vfm.tasks.saved import Checkpoint
from vfm.training.checkpoint_file import CheckpointError

DETAILS = "calibration.json"
"""Beside the operating point: what it was fitted on, and how well it does there."""

Split = Literal["val", "test", "all"]

_SPLITS = {"val": ("val",), "test": ("test",), "all": ("train", "val", "test")}

log = logging.getLogger(__name__)


def calibrate(
    checkpoint: Path,
    data: Path | None = None,
    *,
    fpr: float = 0.01,
    miss: float | None = None,
    abstain: float = 0.01,
    split: Split = "val",
    cropped: bool = False,
    native: bool = False,
    batch_size: int = 32,
    num_workers: int = 0,
    trust: Sequence[str] = (),
) -> None:
    """Fit the temperature and the threshold of a detector of forgeries on videos that it was not trained on.

    Writes operating_point.json beside the checkpoint, which `vfm export` takes into the bundle, and calibration.json,
    which says what it was fitted on. At the threshold at most the given share of real videos is called fake, on
    average, if they are like those here: with other cameras, codecs or people it may be more.

    Args:
        checkpoint: A .ckpt file of a training run, or its adapter.safetensors.
        data: Folder of images as for FakesData, or a manifest; by default the data that the model was trained on,
            whose val split chose the checkpoint: other data is better.
        fpr: Share of real videos that may be called fake, such as 0.01; it takes at least 1 / fpr - 1 of them.
        miss: Share of fake videos that may be called real; videos between both limits are undecided. Without it
            every video up to the threshold is called real.
        abstain: Share of videos like these that each of the rules "unlike the training data", "frames disagree" and
            "too blurred" may leave undecided; 0 for no such rules.
        split: val or test, or all of data that has nothing to do with the training.
        cropped: Says that images without crop.json show one face each, cut out already.
        native: Says that images are not about faces.
        batch_size: Images in a batch.
        num_workers: Processes that open images.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        CalibrationError: The videos were trained or tested on, or are all real or all fake.
        TooFewError: There are too few real videos for the share.
    """
    opened, task = open_detector(checkpoint, trust)
    images = audited_data(opened, data, cropped=cropped, native=native, trust=trust)
    images.batch_size, images.num_workers = batch_size, num_workers
    splits = _found(images, split)
    records = [record for name in splits for record in images.records[name]]
    require_untouched(records, Path(checkpoint).parent, trained_on(opened))
    require_both(records, split)
    print(f"Scoring {len(records)} images ...", flush=True)
    evidence = gather(task, images, splits)
    rules = fit(evidence, fpr=fpr, miss=miss, abstain=abstain)
    rules = replace(rules, calibration=videos_fingerprint(records))
    details = {
        "checkpoint": str(checkpoint),
        "data": str(getattr(images, "root", type(images).__name__)),
        "split": split,
        **describe(evidence, rules),
    }
    path = Path(checkpoint).parent / OPERATING_POINT
    for place, values in ((path, rules.to_dict()), (path.with_name(DETAILS), details)):
        place.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print("\n".join([*_report(details, rules), f"Written: {path}"]))


def require_untouched(
    records: Sequence[Record], folder: Path, trained: Sequence[Record] | None
) -> None:
    """Refuse videos that the model has learned from, or on which it was or will be judged.

    Args:
        records: To calibrate on.
        folder: Of the checkpoint, with the results of its tests.
        trained: What the model learned from; None where that is not known any more.

    Raises:
        CalibrationError: They are the test videos of `results.json`, or some were trained on.
    """
    path = folder / RESULTS_FILE
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tested = results.get("test", {}).get("videos_fingerprint")
    if tested is not None and tested == videos_fingerprint(records):
        raise CalibrationError(
            f"These are the videos of the test in {path}. A threshold fitted on them would make the test prove "
            "nothing. Calibrate on others: --split val, or other data."
        )
    if trained is None:
        log.warning(
            "The training data is not where it was, so it cannot be checked that none of these videos was trained on."
        )
        return
    seen = {_place(record) for record in trained}
    known = [record.name for record in records if _place(record) in seen]
    if known:
        raise CalibrationError(
            f"{len(known)} of these {len(records)} images were trained on, such as {known[0]}. On them the model is "
            "surer than it will ever be again. Choices: --split val or test of the training's data (leave DATA out), "
            "or other data."
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


def fit(evidence: Evidence, *, fpr: float, miss: float | None, abstain: float) -> Decision:
    """The rules of the decision that the evidence supports.

    Args:
        evidence: Of videos that the model has not seen.
        fpr: Share of real videos that may be called fake.
        miss: Share of fake videos that may be called real; None for no answer in between.
        abstain: Share of videos that each rule of doubt may leave undecided; 0 for none.

    Raises:
        TooFewError: There are too few real, or fake, videos.
        ValueError: Reals have the higher logits, or a share is not one.
    """
    videos = evidence.videos
    # First, since it is what most often fails: the message says how many it takes.
    above = conformal_threshold(videos.logits[~videos.fake], fpr, "real videos")
    temperature = fit_temperature(videos.logits, videos.fake)
    threshold = above / temperature
    real_below = None
    if miss is not None:
        below = -conformal_threshold(-videos.logits[videos.fake], miss, "fake videos")
        # Where the limits cross, nothing lies between them: what is not fake is real.
        real_below = below / temperature if below < above else None
    moving = videos.num_frames > 1
    return Decision(
        num_frames=evidence.num_frames if evidence.num_frames > 1 else Decision.num_frames,
        temperature=temperature,
        threshold=threshold,
        real_below=real_below,
        fpr=fpr,
        num_reals=int((~videos.fake).sum()),
        max_distance=_limit(evidence.distances, abstain, "max_distance"),
        max_spread=_limit(videos.spread[moving], abstain, "max_spread"),
        min_sharpness=_least(evidence.sharpness, abstain),
    )


def describe(evidence: Evidence, rules: Decision) -> dict[str, Any]:
    """What the rules were fitted on, and how they do there, ready for JSON.

    `fpr_at_most` bounds, with 95 % confidence, the share of such reals that is called fake at this very threshold:
    the mean over calibration sets is `fpr`, one of them may be luckier than another.

    Args:
        evidence: Of the calibration videos.
        rules: Fitted on them.
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
        "fpr_at_most": largest_rate(alarms, len(reals)),
        "decisions": decisions(calibrated, videos.fake, rules),
        "per_dataset": [
            {"dataset": name}
            | decisions(calibrated[chosen], videos.fake[chosen], rules)
            | {"num_reals": int((~videos.fake[chosen]).sum())}
            for name in dict.fromkeys(names)
            if (chosen := np.array(names) == name).any()
        ],
        "before": reliability(videos.logits, videos.fake),
        "after": reliability(calibrated, videos.fake),
        "decision": rules.to_dict(),
    }


def trained_on(checkpoint: Checkpoint) -> list[Record] | None:
    """What a model learned from, by its checkpoint; None where that is not there any more."""
    try:
        return checkpoint.split("train").records
    except (ValidationError, CheckpointError) as error:
        log.debug("The training data cannot be read: %s", error)
        return None


def _limit(values: NDArray[np.float64], share: float, name: str) -> float | None:
    """What at most this share of such videos exceeds; None where nothing varies, or there are too few to say."""
    if not share or not len(values) or not np.ptp(values):
        return None
    try:
        return conformal_threshold(values, share, "videos")
    except TooFewError as error:
        log.warning("No rule %s: %s", name, error)
        return None


def _least(values: NDArray[np.float64], share: float) -> float | None:
    limit = _limit(-values[np.isfinite(values)], share, "min_sharpness")
    return None if limit is None else -limit


def _found(images: FakeImages, split: Split) -> list[str]:
    images.setup({"val": "validate", "test": "test"}.get(split))
    return [name for name in _SPLITS[split] if images.records.get(name)]


def _place(record: Record) -> Any:
    """What tells whether two records are of the same image: its file, or the name of its video."""
    return record.source if isinstance(record.source, str) else record.groups


def _report(details: dict[str, Any], rules: Decision) -> list[str]:
    fpr, found = rules.fpr or 0.0, details["decisions"]
    lines = [
        f"{details['num_videos']} videos: {details['num_reals']} real, {details['num_fakes']} fake.",
        f"Temperature {rules.temperature:.3g}: expected calibration error {details['before']['ece']:.3f}, now "
        f"{details['after']['ece']:.3f}.",
        f"Threshold: a score of {float(sigmoid(rules.limit)):.4f}. Of real videos like these at most "
        f"{100 * fpr:g} % are called fake, on average; of this threshold {details['fpr_at_most']:.1%} at most, with "
        "95 % confidence.",
        f"Of the fakes here {found['tpr']:.1%} are called fake, {found['missed']:.1%} real.",
    ]
    if details["num_lost"]:
        lines.append(f"{details['num_lost']} videos got no score, and set nothing.")
    if details["num_real_identities"] < least_number(fpr):
        lines.append(
            f"Note: the real videos show only {details['num_real_identities']} people or groups of people, and videos "
            "of one person err together: the rate for other people is less sure than it looks."
        )
    return lines
