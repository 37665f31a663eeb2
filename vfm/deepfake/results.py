"""Deepfake results of a split: results.json with its warnings, videos_<split>.csv, and the page beside them."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.media.bit_depth import ValueRange

from vfm.data.records import Record
from vfm.deepfake.data.dataset import DeepfakeRecord, require_deepfakes
from vfm.deepfake.data.record import LABELS, Item
from vfm.deepfake.metrics import (
    Key,
    LostVideo,
    Videos,
    average_by_video,
    compute_deepfake_results,
)
from vfm.deepfake.operating_point import OPERATING_POINT, OperatingPoint
from vfm.deepfake.page import write_deepfake_page
from vfm.metrics.calibration import bound_rate, measure_reliability
from vfm.metrics.separation import SHORTCUT_LIMIT
from vfm.tasks.results import SplitPredictions, read_results, save_results

SHORTCUTS = "shortcuts.json"
"""Beside the data's manifest: what `vfm doctor --shortcuts` found."""
_INVERTED = 0.4

log = logging.getLogger(__name__)


class ScoredImages(NamedTuple):
    """The scored images of a split with their truth, in the order of the split. N images."""

    logits: NDArray[np.float32]
    """[N], above 0 for fake."""
    distances: NDArray[np.float32]
    """[N], distance of the feature from those of the training; 0 where these are not known."""
    records: list[DeepfakeRecord]
    lost: list[LostVideo]
    """Videos of the split of which no image was scored."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """[N], 0 real, 1 fake."""
        return np.array([record.label for record in self.records], np.int64)

    @property
    def videos(self) -> Videos:
        """The split by video."""
        return average_by_video(self.logits, self.labels, [r.item.key for r in self.records])


def join_records(
    predictions: SplitPredictions, records: Sequence[Record], *, by_frame: bool = False
) -> ScoredImages:
    """Join what a model says of a split with what is true.

    Args:
        predictions: `logits` and `distances` of the split.
        records: Records of the whole split.
        by_frame: Whether the most fake face of a frame stands for it.

    Raises:
        ValueError: A record does not say what it shows.
    """
    listed = require_deepfakes(records)
    seen = [listed[i] for i in predictions.position]
    keys = {record.item.key for record in seen}
    lost = {
        key: LostVideo(key, int(record.label))  # type: ignore[arg-type]  # one label an image
        for record in listed
        if (key := record.item.key) not in keys
    }
    logits, distances = predictions.stack("logits"), predictions.stack("distances")
    rows = np.arange(len(seen))
    if by_frame:
        rows = select_most_fake(logits, [record.item for record in seen])
    return ScoredImages(logits[rows], distances[rows], [seen[i] for i in rows], list(lost.values()))


def select_most_fake(logits: NDArray[np.float32], items: Sequence[Item]) -> NDArray[np.int64]:
    """Rows of the most fake face of each frame, of N logits: by it the frame is judged where all faces count."""
    best: dict[tuple[Key, int], int] = {}
    for row, item in enumerate(items):
        # A still has no number, and is a video of its own.
        frame = (item.key, item.frame)
        if frame not in best or logits[row] > logits[best[frame]]:
            best[frame] = row
    return np.sort(np.fromiter(best.values(), np.int64))


def fingerprint_videos(records: Sequence[Record]) -> str:
    """A sha256 of which videos with which labels a split holds, wherever they lie and whatever it is called."""
    rows = sorted({(*r.item.key, str(r.label)) for r in require_deepfakes(records)})
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def write_deepfake_results(
    folder: Path,
    split: str,
    predictions: SplitPredictions,
    records: Sequence[Record],
    more: Mapping[str, Any],
    *,
    by_frame: bool = False,
    data_root: Path | None = None,
    trained_on: Collection[str] | None = None,
    value_range: ValueRange | None = None,
) -> None:
    """Add a split's results to `results.json`, and write its page, pictures and list of videos beside it.

    Args:
        folder: Folder of the checkpoint, and of the operating point if there is one.
        split: `val` or `test`; results of the other stay.
        predictions: `logits`, `distances` and summed `loss` of the whole split.
        records: Records of the split.
        more: What goes into the JSON besides the metrics.
        by_frame: Whether the most fake face of a frame stands for it.
        data_root: Folder of the data; what an audit for shortcuts left there is quoted.
        trained_on: Methods of the fakes that the model was trained on, to tell unseen ones apart.
        value_range: Black and white of images of more than 8 bits, for the pictures.
    """
    times = read_results(folder).get(split, {}).get("times_evaluated", 0)
    scored = join_records(predictions, records, by_frame=by_frame)
    videos = scored.videos
    fingerprint = fingerprint_videos(records)
    results = {
        **compute_deepfake_results(
            scored.logits,
            scored.labels,
            [record.item.key for record in scored.records],
            [record.component for record in scored.records],
            lost=scored.lost,
            trained_on=trained_on,
        ),
        "labels": list(LABELS),
        "loss": predictions.sums["loss"] / len(predictions.position),
        "videos_fingerprint": fingerprint,
        # A test set that is looked at again and again has become a validation set.
        "times_evaluated": times + 1,
        "metadata_auc": _read_metadata_auc(data_root),
        **_judge_operating_point(folder, videos, fingerprint),
        **more,
    }
    results["warnings"] = list_warnings(results, split)
    for warning in results["warnings"]:
        log.warning(warning)
    save_results(folder, split, results)
    _write_videos(folder / f"videos_{split}.csv", scored, videos)
    write_deepfake_page(folder, split, results, videos, scored.logits, scored.records, value_range)


def list_warnings(results: Mapping[str, Any], split: str) -> list[str]:
    """What a reader must know before believing the results of a split, the gravest first."""
    warnings = []
    shortcut = (results["metadata_auc"] or {}).get("value")
    if shortcut is not None and shortcut > SHORTCUT_LIMIT:
        warnings.append(
            f"SHORTCUT: size, format and compression of the files alone tell real from fake with an AUC of "
            f"{shortcut:.3f}, so these figures may not be of forgery at all. See {SHORTCUTS} of the data; encode both "
            "classes alike."
        )
    value = results["video_auc"]["value"]
    if value is None:
        warnings.append(
            f"The {split} split has only {'fakes' if results['num_fakes'] else 'reals'}, so nothing is told apart."
        )
    elif value < _INVERTED:
        warnings.append(
            f"The video AUC is {value:.3f}: reals look more fake than fakes do. Labels may be swapped; real is 0 and "
            "fake is 1."
        )
    lost = results["failures"]
    number = lost["num_reals"] + lost["num_fakes"]
    if number:
        warnings.append(
            f"{number} of {number + results['num_videos']} videos got no score ({lost['num_reals']} real, "
            f"{lost['num_fakes']} fake). They are in no figure but the worst case."
        )
    if split == "test" and results["times_evaluated"] > 1:
        warnings.append(
            f"The test split was evaluated {results['times_evaluated']} times beside this checkpoint. What was chosen "
            "by its figures makes them too good."
        )
    return warnings + [note for note in [results["operating_point_note"]] if note]


def _read_metadata_auc(root: Path | None) -> Any:
    path = None if root is None else (root if root.is_dir() else root.parent) / SHORTCUTS
    if path is None or not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))["metadata_auc"]


def _judge_operating_point(folder: Path, videos: Videos, fingerprint: str) -> dict[str, Any]:
    """How the calibrated decision does on a split; and how good a probability the score is."""
    path = folder / OPERATING_POINT
    rules, note = Decision(), None
    point = None
    if path.is_file():
        stored = OperatingPoint.read(path).decision
        if fingerprint == stored.calibration:
            note = (
                f"{OPERATING_POINT} was calibrated on these very videos, so its rates here would prove nothing. "
                "Evaluate on others."
            )
        else:
            rules = stored
            point = count_decisions(videos.logits / rules.temperature, videos.fake, rules)
    reliability = measure_reliability(videos.logits / rules.temperature, videos.fake)
    return {
        "calibration": {"temperature": rules.temperature, **reliability},
        "operating_point": point,
        "operating_point_note": note,
    }


def count_decisions(
    calibrated: NDArray[np.float64], fake: NDArray[np.bool_], rules: Decision
) -> dict[str, Any]:
    """What a threshold does: errors of each class, with the upper end of the false alarms' exact interval.

    Args:
        calibrated: [V], mean logit of each video over the temperature.
        fake: [V], the true labels.
        rules: Rules of which only the thresholds are applied.
    """
    called = calibrated > rules.limit
    undecided = ~called & (calibrated >= (np.inf if rules.real_below is None else rules.real_below))
    num_reals, num_fakes = int((~fake).sum()), int(fake.sum())
    alarms, caught = int((called & ~fake).sum()), int((called & fake).sum())
    passed = int((~called & ~undecided & fake).sum())
    return {
        "threshold": rules.threshold,
        "real_below": rules.real_below,
        "calibrated_fpr": rules.fpr,
        "num_false_alarms": alarms,
        "fpr": alarms / num_reals if num_reals else None,
        "fpr_at_most": bound_rate(alarms, num_reals) if num_reals else None,
        "tpr": caught / num_fakes if num_fakes else None,
        "missed": passed / num_fakes if num_fakes else None,
        "undecided": float(undecided.mean()),
        "balanced_accuracy": (
            (caught / num_fakes + 1 - alarms / num_reals) / 2 if num_reals and num_fakes else None
        ),
    }


def _write_videos(path: Path, scored: ScoredImages, videos: Videos) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("dataset", "method", "video", "label", "logit", "spread", "num_frames", "distance")
        )
        far = np.bincount(videos.of_frame, weights=scored.distances) / videos.num_frames
        for i, key in enumerate(videos.keys):
            label = LABELS[int(videos.fake[i])]
            numbers = (f"{videos.logits[i]:.6f}", f"{videos.spread[i]:.6f}", videos.num_frames[i])
            writer.writerow((*key, label, *numbers, f"{far[i]:.6f}"))
        writer.writerows((*lost.key, LABELS[lost.label], "", "", 0, "") for lost in scored.lost)
