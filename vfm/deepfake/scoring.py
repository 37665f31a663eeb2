"""Scores of videos for `vfm audit` of a detector: real and fake videos, who is shown in them, and the threshold."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from vfm_runtime.deepfake.evidence import sigmoid

from vfm.deepfake.data.base import DeepfakeImages
from vfm.deepfake.data.dataset import DeepfakeDataset
from vfm.deepfake.data.layouts import MANIFEST, Format
from vfm.deepfake.data.record import DeepfakeDataError
from vfm.deepfake.export import Split, open_deepfakes, open_plain_data
from vfm.deepfake.metrics import average_by_video
from vfm.deepfake.results import fingerprint_videos, select_most_fake
from vfm.deepfake.robustness.command import is_training_data, open_audited_data
from vfm.deepfake.robustness.results import score_images, select_frames
from vfm.deepfake.task import DeepfakeTask
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.scored_units import ScoredUnits


def score_videos(
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
) -> ScoredUnits:
    """Score the videos of a split by the mean logit of their frames over the temperature; fake is positive.

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

    Raises:
        DeepfakeDataError: No image can be read, or the model was calibrated on these videos.
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
        images = open_audited_data(checkpoint, data, trust=tuple(checkpoint.trust))
    elif split is not None:
        images = open_plain_data(data, format=format, **stated)
    else:
        images, name = open_deepfakes(data, task.crop, ("test", "val"), format=format, **stated)
    start = time.perf_counter()
    records = select_frames(task, images, name, num_frames)
    rules = task.decision
    if rules.calibration is not None and rules.calibration == fingerprint_videos(
        images.list_records(name)
    ):
        raise DeepfakeDataError(
            f"{checkpoint.path} was calibrated on these videos, so its threshold fits them better than others. Audit "
            "it on others, or calibrate it on others (vfm calibrate)."
        )
    dataset = DeepfakeDataset(records, task.preprocess, crop=images.crop)
    scored = score_images(task, dataset, batch_size=batch_size, num_workers=num_workers)
    rows = np.flatnonzero(np.isfinite(scored.logits))
    if not len(rows):
        reason = next(iter(scored.skipped.values()))
        raise DeepfakeDataError(
            f"None of the {len(records)} images of {name} can be read: {reason} Give others with --data."
        )
    if task.judges_all_faces:
        items = [records[i].item for i in rows]
        rows = rows[select_most_fake(scored.logits[rows].astype(np.float32), items)]
    read = [records[i] for i in rows]
    videos = average_by_video(
        scored.logits[rows], [r.label for r in read], [r.item.key for r in read]
    )
    clusters = dict(zip(videos.of_frame.tolist(), (r.component for r in read), strict=True))
    notes = [
        "The unit is the video. Its score counts on either side of the threshold, also where production would leave "
        "it undecided."
    ]
    if rules.threshold is None:
        notes.append(
            "No operating point lies beside the checkpoint, so a score of 0.5 was taken for the threshold: false "
            f"positive rates are those of nothing calibrated (vfm calibrate {checkpoint.path} DATA)."
        )
    root = getattr(images, "root", None)
    manifest = None if root is None else Path(root) / MANIFEST
    if data is not None and data.is_file():
        manifest = data
    return ScoredUnits(
        name="videos",
        source=f"{name} of {data or root or type(images).__name__}",
        records=read,
        positions=videos.of_frame,
        scores=np.array([sigmoid(each / rules.temperature) for each in videos.logits]),
        positive=videos.fake,
        threshold=sigmoid(rules.limit),
        clusters=[clusters[i] for i in range(len(videos.keys))],
        cluster_name="people, with all that shows them",
        table=manifest if manifest is not None and manifest.is_file() else None,
        skipped=scored.skipped,
        notes=notes,
        seconds=time.perf_counter() - start,
        model_seconds=scored.model_seconds,
    )
