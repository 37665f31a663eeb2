"""Collect a whole split's logits over batches and ranks, and write the figures of a detector of forgeries."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.deepfake.decision import Decision

from vfm.data.dataset import Record
from vfm.deepfake.data.dataset import DeepfakeRecord, require_deepfakes
from vfm.deepfake.data.record import Item
from vfm.deepfake.metrics import (
    LABELS,
    Failure,
    Key,
    Videos,
    deepfake_results,
    video_logits,
)
from vfm.deepfake.page import write_deepfake_page
from vfm.metrics.calibration import bound_rate, measure_reliability
from vfm.tasks.results import SplitPredictions, read_results, save_results

OPERATING_POINT = "operating_point.json"
"""Beside the checkpoint, from `vfm calibrate`: `Decision.to_dict`, and nothing else."""
SHORTCUTS = "shortcuts.json"
"""Beside the data's manifest: what `vfm doctor --shortcuts` found."""
SHORTCUT_LIMIT = 0.6
"""An AUC of the metadata above this makes every other figure doubtful."""

_INVERTED = 0.4

log = logging.getLogger(__name__)


class DeepfakePredictions(NamedTuple):
    """What a model said of a split, in the order of the split, each image once. N images."""

    logits: NDArray[np.float32]
    """[N], above 0 for fake."""
    distances: NDArray[np.float32]
    """[N], of the feature from those of the training; 0 where these are not known."""
    position: NDArray[np.int64]
    """[N], place of each image in its split."""
    loss: float
    """Sum over all images."""

    @classmethod
    def from_predictions(cls, predictions: SplitPredictions) -> Self:
        """Take the `logits`, `distances` and summed `loss` that were collected."""
        logits, distances = predictions.stack("logits"), predictions.stack("distances")
        return cls(logits, distances, predictions.position, predictions.sums["loss"])


def most_fake(answers: DeepfakePredictions, items: Sequence[Item]) -> DeepfakePredictions:
    """The most fake face of each frame: by it the frame is judged where all faces count.

    Args:
        answers: Of the split.
        items: Of the whole split.
    """
    best: dict[tuple[Key, int], int] = {}
    for row, position in enumerate(answers.position.tolist()):
        # A still has no number, and is a video of its own.
        frame = (items[position].key, items[position].frame)
        if frame not in best or answers.logits[row] > answers.logits[best[frame]]:
            best[frame] = row
    kept = np.sort(np.fromiter(best.values(), np.int64))
    rows = (answers.logits[kept], answers.distances[kept], answers.position[kept])
    return DeepfakePredictions(*rows, answers.loss * len(kept) / len(answers.position))


class Scored(NamedTuple):
    """The scored images of a split with their truth. N images."""

    logits: NDArray[np.float32]
    distances: NDArray[np.float32]
    labels: NDArray[np.int64]
    """[N], 0 real, 1 fake."""
    records: list[DeepfakeRecord]
    failed: list[Failure]
    """Videos of the split of which no image was scored."""

    @property
    def keys(self) -> list[Key]:
        """The video of each image."""
        return [record.item.key for record in self.records]

    @property
    def videos(self) -> Videos:
        """The split by video."""
        return video_logits(self.logits, self.labels, self.keys)


def scored(answers: DeepfakePredictions, records: Sequence[Record]) -> Scored:
    """Join what the model said with what is true.

    Args:
        answers: Of the split.
        records: Records of the whole split.

    Raises:
        ValueError: A record does not say what it shows.
    """
    shown = require_deepfakes(records)
    seen = [shown[i] for i in answers.position]
    labels = np.array([record.label for record in seen], np.int64)
    found = {record.item.key for record in seen}
    lost = {
        key: Failure(key, int(record.label))  # type: ignore[arg-type]  # one label an image
        for record in shown
        if (key := record.item.key) not in found
    }
    return Scored(answers.logits, answers.distances, labels, seen, list(lost.values()))


def videos_fingerprint(records: Sequence[Record]) -> str:
    """A sha256 of which videos with which labels a split holds, wherever they lie and whatever it is called.

    Args:
        records: Of the split.
    """
    rows = sorted({(*r.item.key, str(r.label)) for r in require_deepfakes(records)})
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def write_deepfake_results(
    folder: Path,
    split: str,
    answers: DeepfakePredictions,
    records: Sequence[Record],
    more: Mapping[str, Any],
    *,
    data_root: Path | None = None,
    trained_on: Collection[str] | None = None,
) -> None:
    """Add a split's results to `results.json`, and write its page, pictures and list of videos beside it.

    Args:
        folder: Where the checkpoint lies, and the operating point if there is one.
        split: `val` or `test`; results of the other stay.
        answers: Of the whole split.
        records: Of the split.
        more: What goes into the JSON besides the figures.
        data_root: Folder of the data; what an audit for shortcuts left there is quoted.
        trained_on: Methods of the fakes that the model was trained on, to tell unseen ones apart.
    """
    times = read_results(folder).get(split, {}).get("times_evaluated", 0)
    found = scored(answers, records)
    results = compute_results(found, trained_on) | {
        "loss": answers.loss / len(answers.position),
        "videos_fingerprint": videos_fingerprint(records),
        # A test set that is looked at again and again has become a validation set.
        "times_evaluated": times + 1,
        "metadata_auc": _metadata_auc(data_root),
    }
    results |= _at_operating_point(folder, found, results["videos_fingerprint"]) | dict(more)
    results["warnings"] = warnings_of(results, split)
    for warning in results["warnings"]:
        log.warning(warning)
    save_results(folder, split, results)
    _write_videos(folder / f"videos_{split}.csv", found)
    write_deepfake_page(folder, split, results, found.videos, found.logits, found.records)


def compute_results(found: Scored, trained_on: Collection[str] | None = None) -> dict[str, Any]:
    """Every figure of a split that follows from logits and truth, ready for JSON.

    Args:
        found: Of the split.
        trained_on: Methods of the fakes that the model was trained on.
    """
    results = deepfake_results(
        found.logits,
        found.labels,
        found.keys,
        [record.component for record in found.records],
        failed=found.failed,
        trained_on=trained_on,
    )
    return {**results, "labels": list(LABELS)}


def warnings_of(results: Mapping[str, Any], split: str) -> list[str]:
    """What a reader must know before believing the figures, the gravest first.

    Args:
        results: Of the split.
        split: Its name.
    """
    found = []
    shortcut = (results["metadata_auc"] or {}).get("value")
    if shortcut is not None and shortcut > SHORTCUT_LIMIT:
        found.append(
            f"SHORTCUT: size, format and compression of the files alone tell real from fake with an AUC of "
            f"{shortcut:.3f}, so these figures may not be of forgery at all. See {SHORTCUTS} of the data; encode both "
            "classes alike."
        )
    value = results["video_auc"]["value"]
    if value is None:
        found.append(
            f"The {split} split has only {'fakes' if results['num_fakes'] else 'reals'}, so nothing is told apart."
        )
    elif value < _INVERTED:
        found.append(
            f"The video AUC is {value:.3f}: reals look more fake than fakes do. Labels may be swapped; real is 0 and "
            "fake is 1."
        )
    lost = results["failures"]
    number = lost["num_reals"] + lost["num_fakes"]
    if number:
        found.append(
            f"{number} of {number + results['num_videos']} videos got no score ({lost['num_reals']} real, "
            f"{lost['num_fakes']} fake). They are in no figure but the worst case."
        )
    if split == "test" and results["times_evaluated"] > 1:
        found.append(
            f"The test split was evaluated {results['times_evaluated']} times beside this checkpoint. What was chosen "
            "by its figures makes them too good."
        )
    return found + [note for note in [results["operating_point_note"]] if note]


def _metadata_auc(root: Path | None) -> dict[str, float] | None:
    path = None if root is None else (root if root.is_dir() else root.parent) / SHORTCUTS
    if path is None or not path.is_file():
        return None
    found: dict[str, float] | None = json.loads(path.read_text(encoding="utf-8"))["metadata_auc"]
    return found


def _at_operating_point(folder: Path, found: Scored, fingerprint: str) -> dict[str, Any]:
    """How the calibrated decision does on this split; and how good a probability the score is."""
    videos = found.videos
    path = folder / OPERATING_POINT
    plain = {"calibration": {"temperature": 1.0, **measure_reliability(videos.logits, videos.fake)}}
    nothing = {**plain, "operating_point": None, "operating_point_note": None}
    if not path.is_file():
        return nothing
    rules = Decision.from_dict(json.loads(path.read_text(encoding="utf-8")))
    if fingerprint == rules.calibration:
        note = (
            f"{OPERATING_POINT} was calibrated on these very videos, so its rates here would prove nothing. Evaluate "
            "on others."
        )
        return nothing | {"operating_point_note": note}
    calibrated = videos.logits / rules.temperature
    measured = {
        "temperature": rules.temperature,
        **measure_reliability(calibrated, videos.fake),
    }
    return {
        "calibration": measured,
        "operating_point": decisions(calibrated, videos.fake, rules),
        "operating_point_note": None,
    }


def decisions(
    calibrated: NDArray[np.float64], fake: NDArray[np.bool_], rules: Decision
) -> dict[str, Any]:
    """What a threshold does: errors of each class, with the upper end of the false alarms' exact interval.

    Args:
        calibrated: [V], mean logit of each video over the temperature.
        fake: [V].
        rules: Of the decision; only its thresholds are applied.
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


def _write_videos(path: Path, found: Scored) -> None:
    videos = found.videos
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("dataset", "method", "video", "label", "logit", "spread", "num_frames", "distance")
        )
        far = np.bincount(videos.of_frame, weights=found.distances) / videos.num_frames
        for i, key in enumerate(videos.keys):
            label = LABELS[int(videos.fake[i])]
            numbers = (f"{videos.logits[i]:.6f}", f"{videos.spread[i]:.6f}", videos.num_frames[i])
            writer.writerow((*key, label, *numbers, f"{far[i]:.6f}"))
        writer.writerows((*lost.key, LABELS[lost.label], "", "", 0, "") for lost in found.failed)
