"""The figures of a detector of forgeries on degraded pictures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from vfm_runtime.media.video import choose_evenly

from vfm.data.dataset import sample_seed
from vfm.deepfake.crop_check import require_same_crop
from vfm.deepfake.data.augment import View
from vfm.deepfake.data.base import DeepfakeImages
from vfm.deepfake.data.dataset import (
    DeepfakeDataset,
    DeepfakeRecord,
    DeepfakeSample,
    collate_deepfakes,
)
from vfm.deepfake.data.record import DeepfakeDataError
from vfm.deepfake.metrics import average_by_video, compute_auc
from vfm.deepfake.robustness.degradations import Degradation
from vfm.deepfake.task import DeepfakeTask
from vfm.metrics.ranking import Metric
from vfm.metrics.roc import ClusteredScores

Split = Literal["val", "test"]

_STAGES = {"val": "validate", "test": "test"}


class Point(NamedTuple):
    """Figures at one level of one degradation."""

    degradation: Degradation | None
    """None for pictures as they are."""
    video_auc: Metric
    frame_auc: float | None
    fpr: float | None
    """Share of the real videos above the threshold of the operating point; None without one."""
    tpr: float | None
    """Share of the fake videos above it."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        named = self.degradation
        return {
            "kind": None if named is None else named.kind,
            "level": None if named is None else named.level,
            "video_auc": self.video_auc,
            "frame_auc": self.frame_auc,
            "fpr": self.fpr,
            "tpr": self.tpr,
        }


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Figures of a split, as it is and degraded."""

    checkpoint: str
    data: str
    split: str
    num_images: int
    num_videos: int
    num_skipped: int
    """Images that could not be read."""
    seed: int
    clean: Point
    points: list[Point]
    """From weak to strong, kind by kind."""

    @property
    def worst(self) -> Point:
        """The point of the lowest video AUC."""
        return min(self.points, key=lambda point: value_of(point.video_auc))

    def mean_auc(self, kind: str) -> float:
        """Mean video AUC over the levels of a kind."""
        values = [
            value_of(p.video_auc)
            for p in self.points
            if p.degradation and p.degradation.kind == kind
        ]
        return sum(values) / len(values)

    @property
    def kinds(self) -> list[str]:
        """Kinds of degradation, in their order."""
        return list(dict.fromkeys(p.degradation.kind for p in self.points if p.degradation))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "checkpoint": self.checkpoint,
            "data": self.data,
            "split": self.split,
            "num_images": self.num_images,
            "num_videos": self.num_videos,
            "num_skipped": self.num_skipped,
            "seed": self.seed,
            "clean": self.clean.to_dict(),
            "points": [point.to_dict() for point in self.points],
            "mean_video_auc": {kind: self.mean_auc(kind) for kind in self.kinds},
        }


def measure_robustness(
    task: DeepfakeTask,
    data: DeepfakeImages,
    levels: Sequence[Degradation],
    *,
    split: Split = "test",
    num_frames: int = 8,
    batch_size: int = 32,
    num_workers: int = 0,
    seed: int = 0,
) -> Robustness:
    """Score a split as it is and at every level.

    A crop is degraded before it is brought to the model's size. H.264 sees one crop at a time, so its frames are all
    key frames: what is lost is what a video loses within a frame.

    Args:
        task: Trained.
        data: Images cut out as those that the task was trained on.
        levels: Of degradation.
        split: `val` or `test`.
        num_frames: Most frames of a video, spread evenly.
        batch_size: Images in a batch.
        num_workers: Processes that open images.
        seed: Of noise and filters.

    Raises:
        CheckpointError: The images are cut out in another way.
        DeepfakeDataError: The split holds one label only, or no image can be read.
    """
    records = prepared(task, data, split, num_frames)
    labels = np.array([record.label for record in records])
    if len(set(labels.tolist())) < 2:
        only = data.labels[int(labels[0])]
        raise DeepfakeDataError(
            f"All {len(records)} images of {split} are {only}: there is nothing to tell them from. Give data with "
            "both labels, or another --split."
        )
    points = []
    skipped: set[str] = set()
    for level in [None, *levels]:
        images = DegradedDeepfakes(records, data, task, level, seed)
        loader = DataLoader(
            images, batch_size, num_workers=num_workers, collate_fn=collate_deepfakes
        )
        logits = _logits(task, loader, len(records), skipped)
        points.append(_point(level, logits, records, task))
    if skipped:
        warnings.warn(f"{len(skipped)} images could not be read and were left out.", stacklevel=2)
    return Robustness(
        checkpoint=str(task.source),
        data=str(getattr(data, "root", type(data).__name__)),
        split=split,
        num_images=len(records) - len(skipped),
        num_videos=len({record.item.key for record in records}),
        num_skipped=len(skipped),
        seed=seed,
        clean=points[0],
        points=points[1:],
    )


class DegradedDeepfakes(DeepfakeDataset):
    """The images of a split at one level of one degradation; what it gives depends on seed and index alone."""

    def __init__(
        self,
        records: Sequence[DeepfakeRecord],
        data: DeepfakeImages,
        task: DeepfakeTask,
        degradation: Degradation | None,
        seed: int,
    ) -> None:
        """Make the data set.

        Args:
            records: In the order of the split.
            data: That says what part of an image is shown.
            task: That says at what size.
            degradation: None to leave the images as they are.
            seed: Of all that is random.
        """
        super().__init__(records, task.preprocess, seed=seed, crop=data.crop)
        self.degradation = degradation

    def _read_view(self, index: int, generator: np.random.Generator | None = None) -> View:
        view = super()._read_view(index, generator)
        if self.degradation is None:
            return view
        drawn = np.random.default_rng(sample_seed(self.seed, 0, index))
        pixels = self.degradation.apply(view.pixels, drawn)
        # The mask is for training.
        return View(pixels, np.full(pixels.shape[:2], -1.0, np.float32))


def prepared(
    task: DeepfakeTask, data: DeepfakeImages, split: Split, num_frames: int
) -> list[DeepfakeRecord]:
    """The images of a split, of each video no more than some frames, spread evenly.

    Args:
        task: Whose crops the data must have.
        data: That is set up by this.
        split: `val` or `test`.
        num_frames: Most frames of a video.

    Raises:
        CheckpointError: The images are cut out in another way than the task's.
        ValueError: num_frames is below 1, or the split is empty.
    """
    data.preprocess = task.preprocess
    data.setup(_STAGES[split])
    if task.crop is not None:
        require_same_crop(data.crop, task.crop)
    records = data.list_records(split)
    videos: dict[tuple[str, ...], list[int]] = {}
    for place, record in enumerate(records):
        videos.setdefault(record.item.key, []).append(place)
    kept = sorted(
        places[index]
        for places in videos.values()
        for index in choose_evenly(len(places), num_frames)
    )
    return [records[k] for k in kept]


def examples(
    task: DeepfakeTask, data: DeepfakeImages, levels: Sequence[Degradation], split: Split, seed: int
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """One fake of a split at every level, as the model sees it, with what was done to it.

    Args:
        task: Whose input size is taken.
        data: That was set up.
        levels: Of degradation.
        split: `val` or `test`.
        seed: Of noise and filters.
    """
    records = prepared(task, data, split, 1)
    chosen = next(place for place, record in enumerate(records) if record.label == 1)
    for level in [None, *levels]:
        images = DegradedDeepfakes([records[chosen]], data, task, level, seed)
        sample = images[0]
        if isinstance(sample, DeepfakeSample):
            yield "as it is" if level is None else str(level), sample.image


def _logits(
    task: DeepfakeTask, loader: DataLoader[Any], number: int, skipped: set[str]
) -> NDArray[np.float64]:
    """[number], NaN where an image could not be read."""
    logits = np.full(number, np.nan)
    for batch in loader:
        skipped.update(name for name, _ in batch["skipped"])
        if not len(batch["image"]):
            continue
        with torch.inference_mode():
            answers = task.answer(batch["image"].to(task.device))
        logits[batch["index"].numpy()] = answers["logits"].float().cpu().numpy()
    return logits


def _point(
    level: Degradation | None,
    logits: NDArray[np.float64],
    records: Sequence[DeepfakeRecord],
    task: DeepfakeTask,
) -> Point:
    places = np.flatnonzero(np.isfinite(logits))
    read = [records[place] for place in places.tolist()]
    labels = np.array([record.label for record in read])
    if len(set(labels.tolist())) < 2:
        raise DeepfakeDataError(
            "Of one of the labels no image can be read. See the messages above."
        )
    keys = [record.item.key for record in read]
    videos = average_by_video(logits[places], labels, keys)
    of_frame = np.unique([record.component for record in read], return_inverse=True)[1]
    tied = np.zeros(len(videos.keys), np.int64)
    tied[videos.of_frame] = of_frame
    scores = ClusteredScores(videos.logits, videos.fake, tied, int(tied.max()) + 1)
    called = _called_fake(videos.logits, videos.fake, task)
    return Point(level, scores.estimate_auc(), compute_auc(logits[places], labels == 1), *called)


def _called_fake(
    logits: NDArray[np.float64], fake: NDArray[np.bool_], task: DeepfakeTask
) -> tuple[float | None, float | None]:
    """Shares of the real and of the fake videos above the threshold, which was fitted on pictures as they are."""
    rules = task.decision
    if rules.threshold is None:
        return None, None
    above = logits / rules.temperature > rules.threshold
    return float(above[~fake].mean()), float(above[fake].mean())


def value_of(found: Metric) -> float:
    """The value of a figure of a split with both labels."""
    value = found["value"]
    assert value is not None  # both labels are there
    return value
