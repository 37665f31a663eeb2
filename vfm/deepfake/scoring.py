"""Scores of videos for `vfm audit` of a detector: real and fake videos, who is shown in them, and the threshold."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from vfm_runtime.bundle.model import Model
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.deepfake.evidence import sigmoid
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.deepfake.task import DeepfakeType
from vfm_runtime.media.image import ImageError, Pixels
from vfm_runtime.media.video import choose_evenly
from vfm_runtime.tasks.groups import GroupRules

from vfm.data.corruptions import CORRUPTIONS, Corruption
from vfm.data.dataset import sample_seed
from vfm.data.records import Record
from vfm.data.tables import read_table
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
from vfm.deepfake.data.layouts import Format
from vfm.deepfake.data.record import DeepfakeDataError
from vfm.deepfake.export import Split, open_deepfakes, open_plain_data
from vfm.deepfake.groups import find_table, read_video_groups
from vfm.deepfake.metrics import Key, average_by_video
from vfm.deepfake.results import fingerprint_videos, select_most_fake
from vfm.deepfake.task import DeepfakeTask
from vfm.preprocess import Preprocess
from vfm.spec import build
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.predictor import TorchPredictor
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
    """Real and fake videos that are scored by the mean logit of their frames over the temperature."""

    predictor: Predictor
    path: Path
    """The checkpoint, or the folder of the bundle."""
    images: CorruptedDeepfakes
    """All frames that are scored."""
    source: str
    """What they are of, in words."""
    table: Path | None = None
    """Table with a row for each image; None where there is none."""
    groups: Mapping[Key, str | None] = field(default_factory=dict)
    """Group of each video, by whose rules it is judged; None, or no entry, for the general ones."""
    notes: Sequence[str] = ()
    """What the reader must know of how they were opened."""
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
                outputs = self.predictor.compute_outputs({"pixels": batch["image"].numpy()})
                logits[batch["index"].numpy()] = outputs["logits"]
                seconds += time.perf_counter() - begun
        rows = np.flatnonzero(np.isfinite(logits))
        if not len(rows):
            reason = next(iter(skipped.values()))
            raise DeepfakeDataError(
                f"None of the {len(records)} images of {self.source} can be read: {reason} Give others with --data."
            )
        task_type = _require_type(self.predictor)
        if task_type.pipeline.crop.policy == "all":
            items = [records[i].item for i in rows.tolist()]
            rows = rows[select_most_fake(logits[rows].astype(np.float32), items)]
        read = [records[i] for i in rows.tolist()]
        videos = average_by_video(logits[rows], [r.label for r in read], [r.item.key for r in read])
        clusters = dict(zip(videos.of_frame.tolist(), (r.component for r in read), strict=True))
        decisions = {
            group: _require_type(self.predictor, group).pipeline.decision
            for group in {None, *self.groups.values()}
        }
        by_video = [decisions[self.groups.get(key)] for key in videos.keys]
        limits = np.array([sigmoid(rules.limit) for rules in by_video])
        return ScoredUnits(
            name="videos",
            source=self.source,
            records=read,
            positions=videos.of_frame,
            # By the general temperature, as `score_pixels` has them, whose scores stand beside these.
            image_scores=_compute_scores(logits[rows] / decisions[None].temperature),
            scores=_compute_scores(videos.logits / [rules.temperature for rules in by_video]),
            positive=videos.fake,
            threshold=sigmoid(decisions[None].limit),
            group_thresholds=limits if self.groups else None,
            clusters=[clusters[i] for i in range(len(videos.keys))],
            cluster_name="people, with all that shows them",
            table=self.table,
            skipped=skipped,
            notes=self._list_notes(),
            seconds=time.perf_counter() - start,
            model_seconds=seconds,
        )

    def score_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the probability that crops are fake, [N], as `AuditedUnits` has it."""
        logits = self.predictor.compute_outputs({"pixels": pixels})["logits"]
        return _compute_scores(logits / _require_type(self.predictor).pipeline.decision.temperature)

    def compute_heatmap(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return where the head of the model says that a crop is forged, [h, w], 0 to 1."""
        outputs = self.predictor.compute_outputs({"pixels": pixels[None]})
        heatmap: NDArray[np.float32] = outputs["heatmaps"][0]
        return heatmap

    def _list_notes(self) -> list[str]:
        notes = [
            "The unit is the video. Its score counts on either side of the threshold, also where production would "
            "leave it undecided.",
            *self.notes,
        ]
        if _require_type(self.predictor).pipeline.decision.threshold is None:
            where, path = "lies beside the checkpoint", str(self.path)
            if isinstance(self.predictor, Model):
                where, path = "is in the bundle", "CHECKPOINT"
            notes.append(
                f"No operating point {where}, so a score of 0.5 was taken for the threshold: false positive rates are "
                f"those of nothing calibrated (vfm calibrate {path} DATA)."
            )
        return notes


def _compute_scores(calibrated: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.array([sigmoid(each) for each in calibrated.tolist()])


def _require_type(predictor: Predictor, group: str | None = None) -> DeepfakeType:
    task_type = predictor.task_type.for_group(group)
    assert isinstance(task_type, DeepfakeType)
    return task_type


def open_videos(
    model: Checkpoint | Model,
    data: Path | None = None,
    *,
    split: Split | None = None,
    num_frames: int = 8,
    format: Format = "auto",
    cropped: bool = False,
    native: bool = False,
    table: Path | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str = "auto",
    seed: int = 0,
) -> AuditedVideos:
    """Open the videos of a split, and bring the model of a checkpoint to its device.

    Args:
        model: Checkpoint of a DeepfakeTask, or a bundle, which stays on its device.
        data: Folder or manifest; None, or the folder of the training, for the data and the splits of the training.
        split: Split to score; by default test, of other data val where they state no test, else all of them.
        num_frames: Most frames of a video, spread evenly.
        format: Layout of the data, where there is no manifest.
        cropped: Says that images without crop.json show one face each, cut out already.
        native: Says that images are not about faces.
        table: Table with the groups by which the model has thresholds; None for that of the data.
        batch_size: Images in a batch.
        num_workers: Processes that open images.
        device: cpu, cuda, or auto for a GPU where there is one.
        seed: Seed of blends, noise and filters.

    Raises:
        DeepfakeDataError: Nothing says which data to take, or the model was calibrated on these videos.
        CheckpointError: The images are cut out in another way than those of the training.
        CalibrationError: The images of one video are of different groups.
    """
    path = model.path
    assert path is not None  # it was opened from a file
    if isinstance(model, Model):
        predictor: Predictor = model
        preprocess = _read_preprocess(model)
    else:
        task = model.task
        assert isinstance(task, DeepfakeTask)
        task.require_trained()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        predictor = TorchPredictor(task.to(torch.device(device)).eval())
        preprocess = task.preprocess
    pipeline = _require_type(predictor).pipeline
    stated = {name: True for name, is_set in (("cropped", cropped), ("native", native)) if is_set}
    images: DeepfakeImages
    name: Split = split or "test"
    if isinstance(model, Checkpoint) and (data is None or is_training_data(model, data)):
        images = open_training_data(model)
    elif data is None:
        raise DeepfakeDataError(
            f"{path} is a bundle, which names no data. Give a folder of real and fake images, or a manifest: --data "
            "PATH."
        )
    elif split is not None:
        images = open_plain_data(data, format=format, **stated)
    else:
        images, name = open_deepfakes(data, pipeline.crop, ("test", "val"), format=format, **stated)
    records = select_frames(preprocess, pipeline.crop, images, name, num_frames)
    rules = pipeline.decision
    if rules.calibration is not None and rules.calibration == fingerprint_videos(
        images.list_records(name)
    ):
        raise DeepfakeDataError(
            f"{path} was calibrated on these videos, so its threshold fits them better than others. Audit "
            "it on others, or calibrate it on others (vfm calibrate)."
        )
    source = f"{name} of {data or getattr(images, 'root', None) or type(images).__name__}"
    manifest = find_table(images)
    groups, notes = _read_rule_groups(
        predictor.task_type.group_rules, records, table or manifest, source
    )
    return AuditedVideos(
        predictor=predictor,
        path=path,
        images=CorruptedDeepfakes(records, preprocess, crop=images.crop, seed=seed),
        source=source,
        table=manifest,
        groups=groups,
        notes=notes,
        batch_size=batch_size,
        num_workers=num_workers,
    )


def _read_preprocess(model: Model) -> Preprocess:
    """Return the preprocessing of a bundle, whose resizing is the graph that the bundle carries."""
    limits = model.value_range
    bit_depth = None if limits is None else int(limits[1]).bit_length()
    return Preprocess(**model.contract.preprocess).add_bit_depth(bit_depth)


def _read_rule_groups(
    rules: GroupRules | None, records: Sequence[DeepfakeRecord], table: Path | None, source: str
) -> tuple[dict[Key, str | None], list[str]]:
    """Return the group of each video by whose threshold it is judged, and what the reader must know of that."""
    if rules is None:
        return {}, []
    if table is None or rules.column not in read_table(table).columns:
        return {}, [
            f"The model has rules by {rules.column}, but there is no such column: the general rule was audited."
        ]
    values = read_video_groups(records, rules.column, table, "--table", source=source)
    groups = {key: value if value in rules.groups else None for key, value in values.items()}
    number = sum(group is not None and rules.groups[group] is not None for group in groups.values())
    note = (
        f"The model has rules by {rules.column}: {number} of {len(groups)} videos were judged by those of their group, "
        f"the others by the general rule. {rules.criterion}"
    )
    return groups, [note]


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
    preprocess: Preprocess, crop: CropSpec, data: DeepfakeImages, split: Split, num_frames: int
) -> list[DeepfakeRecord]:
    """Set data up, and return the images of a split, of each video no more than some frames, spread evenly.

    Raises:
        CheckpointError: The images are cut out in another way than the model's.
        ValueError: num_frames is below 1, or the split is empty.
    """
    data.preprocess = preprocess
    data.setup(_STAGES[split])
    require_same_crop(data.crop, crop)
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
