"""Robustness curve: metrics of a deepfake model on pictures degraded at several levels."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from vfm_runtime.media.video import choose_evenly

from vfm.data.corruptions import CorruptionLevel
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
from vfm.deepfake.export import Split
from vfm.deepfake.metrics import average_by_video, compute_auc
from vfm.deepfake.task import DeepfakeTask
from vfm.metrics.ranking import Metric
from vfm.metrics.roc import ClusteredScores

_STAGES = {"val": "validate", "test": "test"}


class RobustnessPoint(NamedTuple):
    """Metrics at one level of one corruption."""

    corruption: CorruptionLevel | None
    """None for pictures as they are."""
    video_auc: Metric
    frame_auc: float | None
    fpr: float | None
    """Fraction of the real videos above the threshold of the operating point; None without one."""
    tpr: float | None
    """Fraction of the fake videos above it."""

    @property
    def auc(self) -> float:
        """Video AUC."""
        value = self.video_auc["value"]
        assert value is not None  # both labels are there
        return value

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        kind, level = self.corruption or (None, None)
        values = self._asdict()
        del values["corruption"]
        return {"kind": kind, "level": level, **values}


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Metrics of a split, as it is and degraded."""

    checkpoint: str
    data: str
    split: str
    num_images: int
    num_videos: int
    num_skipped: int
    """Images that could not be read."""
    seed: int
    clean: RobustnessPoint
    points: list[RobustnessPoint]
    """From weak to strong, kind by kind."""

    @property
    def worst(self) -> RobustnessPoint:
        """The point of the lowest video AUC."""
        return min(self.points, key=lambda point: point.auc)

    @property
    def by_kind(self) -> dict[str, list[RobustnessPoint]]:
        """Points by the kind of corruption."""
        kinds: dict[str, list[RobustnessPoint]] = {}
        for point in self.points:
            if point.corruption:
                kinds.setdefault(point.corruption.kind, []).append(point)
        return kinds

    @property
    def mean_auc(self) -> dict[str, float]:
        """Mean video AUC over the levels of each kind."""
        return {
            kind: sum(p.auc for p in points) / len(points) for kind, points in self.by_kind.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            **vars(self),
            "clean": self.clean.to_dict(),
            "points": [point.to_dict() for point in self.points],
            "mean_video_auc": self.mean_auc,
        }


def measure_robustness(
    task: DeepfakeTask,
    data: DeepfakeImages,
    levels: Sequence[CorruptionLevel],
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
        task: A task that was trained, or restored from a checkpoint.
        data: Images cut out as those that the task was trained on.
        levels: Corruptions, each at a level.
        split: `val` or `test`, the images that are scored.
        num_frames: Most frames of a video, spread evenly.
        batch_size: Images in a batch.
        num_workers: Processes that open images.
        seed: Seed of noise and filters.

    Raises:
        CheckpointError: The images are cut out in another way.
        DeepfakeDataError: The split holds one label only, or no image can be read.
    """
    records = select_frames(task, data, split, num_frames)
    labels = {record.label for record in records}
    if len(labels) < 2:
        only = data.labels[int(labels.pop())]  # type: ignore[arg-type]  # one label an image
        raise DeepfakeDataError(
            f"All {len(records)} images of {split} are {only}: there is nothing to tell them from. Give data with "
            "both labels, or another --split."
        )
    points = []
    skipped: dict[str, str] = {}
    for level in [None, *levels]:
        images = CorruptedDeepfakes(
            records, task.preprocess, seed=seed, crop=data.crop, corruption=level
        )
        scores = score_images(task, images, batch_size=batch_size, num_workers=num_workers)
        skipped |= scores.skipped
        points.append(_measure_point(level, scores.logits, records, task))
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


class ImageScores(NamedTuple):
    """What a model says of N images."""

    logits: NDArray[np.float64]
    """[N], NaN where an image cannot be read."""
    skipped: dict[str, str]
    """The reason by the name of each image that cannot be read."""
    model_seconds: float
    """Time that the model itself took."""


def score_images(
    task: DeepfakeTask, images: DeepfakeDataset, *, batch_size: int = 32, num_workers: int = 0
) -> ImageScores:
    """Score images in their order, on the device of the task."""
    logits, skipped, seconds = np.full(len(images), np.nan), {}, 0.0
    loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=collate_deepfakes)
    for batch in loader:
        skipped.update(batch["skipped"])
        if len(batch["image"]):
            start = time.perf_counter()
            with torch.inference_mode():
                outputs = task.answer(batch["image"].to(task.device))
            logits[batch["index"].numpy()] = outputs["logits"].float().cpu().numpy()
            seconds += time.perf_counter() - start
    return ImageScores(logits, skipped, seconds)


@dataclass(eq=False, kw_only=True)
class CorruptedDeepfakes(DeepfakeDataset):
    """The images of a split at one level of one corruption; what it gives depends on seed and index alone."""

    corruption: CorruptionLevel | None
    """None to leave the images as they are."""

    def _read_view(self, index: int, generator: np.random.Generator | None = None) -> View:
        view = super()._read_view(index, generator)
        if self.corruption is None:
            return view
        generator = np.random.default_rng(sample_seed(self.seed, 0, index))
        pixels = self.corruption.apply(view.pixels, generator)
        # The mask is for training.
        return View(pixels, np.full(pixels.shape[:2], -1.0, np.float32))


def select_frames(
    task: DeepfakeTask, data: DeepfakeImages, split: Split, num_frames: int
) -> list[DeepfakeRecord]:
    """Set data up, and return the images of a split, of each video no more than some frames, spread evenly.

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
    for position, record in enumerate(records):
        videos.setdefault(record.item.key, []).append(position)
    chosen = sorted(
        positions[index]
        for positions in videos.values()
        for index in choose_evenly(len(positions), num_frames)
    )
    return [records[position] for position in chosen]


def draw_examples(
    task: DeepfakeTask,
    data: DeepfakeImages,
    levels: Sequence[CorruptionLevel],
    split: Split,
    seed: int,
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield one fake of a split at every level, as the model sees it, with what was done to it."""
    chosen = next(record for record in select_frames(task, data, split, 1) if record.label == 1)
    images = CorruptedDeepfakes(
        [chosen], task.preprocess, seed=seed, crop=data.crop, corruption=None
    )
    for level in [None, *levels]:
        sample = replace(images, corruption=level)[0]
        if isinstance(sample, DeepfakeSample):
            yield "as it is" if level is None else str(level), sample.image


def _measure_point(
    level: CorruptionLevel | None,
    logits: NDArray[np.float64],
    records: Sequence[DeepfakeRecord],
    task: DeepfakeTask,
) -> RobustnessPoint:
    positions = np.flatnonzero(np.isfinite(logits))
    read = [records[position] for position in positions.tolist()]
    labels = np.array([record.label for record in read])
    if len(set(labels.tolist())) < 2:
        raise DeepfakeDataError(
            "Of one of the labels no image can be read. See the messages above."
        )
    videos = average_by_video(logits[positions], labels, [record.item.key for record in read])
    clusters = np.zeros(len(videos.keys), np.int64)
    clusters[videos.of_frame] = np.unique([r.component for r in read], return_inverse=True)[1]
    scores = ClusteredScores(videos.logits, videos.fake, clusters, int(clusters.max()) + 1)
    fpr = tpr = None
    if (rules := task.decision).threshold is not None:
        above = videos.logits / rules.temperature > rules.threshold
        fpr, tpr = float(above[~videos.fake].mean()), float(above[videos.fake].mean())
    frame_auc = compute_auc(logits[positions], labels == 1)
    return RobustnessPoint(level, scores.estimate_auc(), frame_auc, fpr, tpr)
