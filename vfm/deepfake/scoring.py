"""Scores of videos for `vfm audit` of a detector: real and fake videos, who is shown in them, and the threshold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from vfm_runtime.deepfake.evidence import sigmoid
from vfm_runtime.media.image import ImageError, Pixels
from vfm_runtime.media.video import choose_evenly

from vfm.data.corruptions import CORRUPTIONS, Corruption
from vfm.data.dataset import sample_seed
from vfm.data.records import Record
from vfm.deepfake.crop_check import require_same_crop
from vfm.deepfake.data.augment import View
from vfm.deepfake.data.base import DeepfakeImages
from vfm.deepfake.data.dataset import (
    DeepfakeDataset,
    DeepfakeRecord,
    DeepfakeSample,
    collate_deepfakes,
    require_deepfakes,
)
from vfm.deepfake.data.layouts import MANIFEST, Format
from vfm.deepfake.data.record import DeepfakeDataError
from vfm.deepfake.export import Split, open_deepfakes, open_plain_data
from vfm.deepfake.metrics import average_by_video
from vfm.deepfake.results import fingerprint_videos, select_most_fake
from vfm.deepfake.task import DeepfakeTask
from vfm.spec import build
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.scored_units import AuditedUnits, ScoredUnits

_STAGES = {"val": "validate", "test": "test"}


@dataclass(eq=False, kw_only=True)
class CorruptedDeepfakes(DeepfakeDataset):
    """Images of a split, degraded before they are resized; what it gives depends on seed and index alone."""

    corruption: Corruption | None = None
    """None to leave the images as they are."""
    level: float = 0.0
    """Level of the corruption."""

    def _read_view(self, index: int, generator: np.random.Generator | None = None) -> View:
        view = super()._read_view(index, generator)
        if self.corruption is None:
            return view
        generator = np.random.default_rng(sample_seed(self.seed, 0, index))
        pixels = self.corruption.apply(view.pixels, self.level, generator)
        # The mask is for training.
        return View(pixels, np.full(pixels.shape[:2], -1.0, np.float32))


@dataclass(frozen=True, kw_only=True)
class AuditedVideos(AuditedUnits):
    """Real and fake videos that a task scores by the mean logit of their frames over the temperature."""

    task: DeepfakeTask
    """On its device."""
    images: CorruptedDeepfakes
    """All frames that are scored."""
    source: str
    """What they are of, in words."""
    table: Path | None = None
    """Table with a row for each image; None where there is none."""
    batch_size: int = 32
    num_workers: int = 0

    corruptions = CORRUPTIONS
    about_corruptions = (
        "Every crop was degraded before it was brought to the model's size, at the levels of GenD (Yermakov et al., "
        "2025). H.264 saw one crop at a time, so all its frames are key frames. The threshold was fitted on pictures "
        "as they are: where the false positive rate rises, it no longer holds."
    )

    @property
    def records(self) -> Sequence[DeepfakeRecord]:  # type: ignore[override]
        """All frames that are scored."""
        return require_deepfakes(self.images.records)

    def open(
        self, record: Record, corruption: Corruption | None = None, level: float = 0.0
    ) -> Pixels:
        """Return a frame as the model sees it; an error is that of `AuditedUnits`."""
        images = replace(self.images, records=[record], corruption=corruption, level=level)
        sample = images[0]
        if not isinstance(sample, DeepfakeSample):
            raise ImageError(sample.name, sample.reason, "Give another image.")
        return sample.image

    def score(
        self, corruption: Corruption | None = None, level: float = 0.0, *, number: int | None = None
    ) -> ScoredUnits:
        """Score the videos; fake is positive.

        Args:
            corruption: What degrades each crop first; None to leave them as they are.
            level: One of its levels.
            number: Most videos that are scored, spread evenly over the reals and over the fakes; None for all.

        Raises:
            DeepfakeDataError: No image can be read.
        """
        start = time.perf_counter()
        records = self.records
        if number is not None:
            ordered = sorted(records, key=lambda record: record.label)
            keys = list(dict.fromkeys(record.item.key for record in ordered))
            chosen = {keys[i] for i in choose_evenly(len(keys), number)}
            records = [record for record in records if record.item.key in chosen]
        images = replace(self.images, records=records, corruption=corruption, level=level)
        logits, seconds = np.full(len(records), np.nan), 0.0
        skipped: dict[str, str] = {}
        for batch in DataLoader(
            images, self.batch_size, num_workers=self.num_workers, collate_fn=collate_deepfakes
        ):
            skipped.update(batch["skipped"])
            if len(batch["image"]):
                begun = time.perf_counter()
                with torch.inference_mode():
                    outputs = self.task.answer(batch["image"].to(self.task.device))
                logits[batch["index"].numpy()] = outputs["logits"].float().cpu().numpy()
                seconds += time.perf_counter() - begun
        rows = np.flatnonzero(np.isfinite(logits))
        if not len(rows):
            reason = next(iter(skipped.values()))
            raise DeepfakeDataError(
                f"None of the {len(records)} images of {self.source} can be read: {reason} Give others with --data."
            )
        if self.task.judges_all_faces:
            items = [records[i].item for i in rows.tolist()]
            rows = rows[select_most_fake(logits[rows].astype(np.float32), items)]
        read = [records[i] for i in rows.tolist()]
        videos = average_by_video(logits[rows], [r.label for r in read], [r.item.key for r in read])
        clusters = dict(zip(videos.of_frame.tolist(), (r.component for r in read), strict=True))
        rules = self.task.decision
        return ScoredUnits(
            name="videos",
            source=self.source,
            records=read,
            positions=videos.of_frame,
            scores=np.array([sigmoid(each / rules.temperature) for each in videos.logits]),
            positive=videos.fake,
            threshold=sigmoid(rules.limit),
            clusters=[clusters[i] for i in range(len(videos.keys))],
            cluster_name="people, with all that shows them",
            table=self.table,
            skipped=skipped,
            notes=self._list_notes(),
            seconds=time.perf_counter() - start,
            model_seconds=seconds,
        )

    def _list_notes(self) -> list[str]:
        notes = [
            "The unit is the video. Its score counts on either side of the threshold, also where production would "
            "leave it undecided."
        ]
        if self.task.decision.threshold is None:
            notes.append(
                "No operating point lies beside the checkpoint, so a score of 0.5 was taken for the threshold: false "
                f"positive rates are those of nothing calibrated (vfm calibrate {self.task.source} DATA)."
            )
        return notes


def open_videos(
    checkpoint: Checkpoint,
    data: Path | None = None,
    *,
    split: Split | None = None,
    num_frames: int = 8,
    format: Format = "auto",
    cropped: bool = False,
    native: bool = False,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str = "auto",
    seed: int = 0,
) -> AuditedVideos:
    """Open the videos of a split, and bring the model to its device.

    Args:
        checkpoint: Checkpoint of a DeepfakeTask.
        data: Folder or manifest; None, or the folder of the training, for the data and the splits of the training.
        split: Split to score; by default test, of other data val where they state no test, else all of them.
        num_frames: Most frames of a video, spread evenly.
        format: Layout of the data, where there is no manifest.
        cropped: Says that images without crop.json show one face each, cut out already.
        native: Says that images are not about faces.
        batch_size: Images in a batch.
        num_workers: Processes that open images.
        device: cpu, cuda, or auto for a GPU where there is one.
        seed: Seed of blends, noise and filters.

    Raises:
        DeepfakeDataError: Nothing says which data to take, or the model was calibrated on these videos.
        CheckpointError: The images are cut out in another way than those of the training.
    """
    task = checkpoint.task
    assert isinstance(task, DeepfakeTask)
    task.require_trained()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    task.to(torch.device(device)).eval()
    stated = {name: True for name, is_set in (("cropped", cropped), ("native", native)) if is_set}
    images: DeepfakeImages
    name: Split = split or "test"
    if data is None or is_training_data(checkpoint, data):
        images = open_training_data(checkpoint)
    elif split is not None:
        images = open_plain_data(data, format=format, **stated)
    else:
        images, name = open_deepfakes(data, task.crop, ("test", "val"), format=format, **stated)
    records = select_frames(task, images, name, num_frames)
    rules = task.decision
    if rules.calibration is not None and rules.calibration == fingerprint_videos(
        images.list_records(name)
    ):
        raise DeepfakeDataError(
            f"{checkpoint.path} was calibrated on these videos, so its threshold fits them better than others. Audit "
            "it on others, or calibrate it on others (vfm calibrate)."
        )
    root = getattr(images, "root", None)
    manifest = None if root is None else Path(root) / MANIFEST
    if data is not None and data.is_file():
        manifest = data
    return AuditedVideos(
        task=task,
        images=CorruptedDeepfakes(records, task.preprocess, crop=images.crop, seed=seed),
        source=f"{name} of {data or root or type(images).__name__}",
        table=manifest if manifest is not None and manifest.is_file() else None,
        batch_size=batch_size,
        num_workers=num_workers,
    )


def is_training_data(checkpoint: Checkpoint, data: Path) -> bool:
    """Whether data are those of the training: the same folder."""
    root = (checkpoint.data_spec or {"init_args": {}})["init_args"].get("root")
    return root is not None and Path(root).resolve() == data.resolve()


def open_training_data(checkpoint: Checkpoint) -> DeepfakeImages:
    """Return the data of the training, without what would change its images.

    Raises:
        DeepfakeDataError: Nothing says what they were.
    """
    trained = checkpoint.data_spec
    if trained is None:
        raise DeepfakeDataError(
            f"{checkpoint.path} does not say what it was trained on. Name the data: vfm audit {checkpoint.path} DATA."
        )
    # The mode stays: by it a split without fakes has the blends that it was validated on.
    plain: dict[str, Any] = trained["init_args"] | {"edits": False, "benign_share": 0.0}
    data: DeepfakeImages = build(
        {**trained, "init_args": plain}, base=DeepfakeImages, trust=tuple(checkpoint.trust)
    )
    return data


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
