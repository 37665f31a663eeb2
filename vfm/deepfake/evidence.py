"""What a detector of forgeries says of videos that it has not seen: what its operating point is fitted on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.deepfake.faces.quality import measure_sharpness
from vfm_runtime.media.image import ImageError, open_image

from vfm.data.dataset import Record, read_source
from vfm.deepfake.data.base import DeepfakeImages
from vfm.deepfake.data.dataset import DeepfakeRecord
from vfm.deepfake.data.record import LABELS
from vfm.deepfake.metrics import Videos, video_logits
from vfm.deepfake.results import DeepfakePredictions, most_fake, scored
from vfm.tasks.calibration import CalibrationError
from vfm.tasks.results import Collector
from vfm.tasks.validation import Run


class Evidence(NamedTuple):
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


def gather(run: Run, crop: CropSpec, images: DeepfakeImages, splits: Sequence[str]) -> Evidence:
    """Score the images of some splits.

    Args:
        run: The model.
        crop: How the images that it was trained on were cut out.
        images: Images that were cut out in the same way, with the model's `preprocess`.
        splits: Their names.

    Raises:
        CalibrationError: No image can be read.
    """
    shown: list[_Shown] = []
    lost = 0
    for split in splits:
        records = images.list_records(split)
        answers = _answers(run, images, split)
        lost += len(scored(answers, records).failed)
        if crop.policy == "all" and len(answers.position):
            answers = most_fake(answers, [record.item for record in records])
        rows = zip(answers.position, answers.logits, answers.distances, strict=True)
        shown += [_Shown(records[i], float(logit), float(far)) for i, logit, far in rows]
    if not shown:
        raise CalibrationError(
            "None of the images can be read. Check that they are where the manifest says."
        )
    return _evidence(shown, crop, lost)


class _Shown(NamedTuple):
    """An image, and what the model says of it."""

    record: DeepfakeRecord
    logit: float
    distance: float


def _answers(run: Run, images: DeepfakeImages, split: str) -> DeepfakePredictions:
    collector = Collector()
    for batch in images.build_plain_loader(split):
        if len(batch["image"]):
            outputs = run({"pixels": batch["image"].numpy()})
            values = {name: torch.from_numpy(outputs[name]) for name in ("logits", "distances")}
            collector.add(batch["index"], values)
    predictions = collector.gather()
    if predictions is None:
        nothing = np.zeros(0, np.float32)
        return DeepfakePredictions(nothing, nothing, np.zeros(0, np.int64), 0.0)
    return DeepfakePredictions.from_predictions(predictions)


def _evidence(shown: Sequence[_Shown], crop: CropSpec, num_lost: int) -> Evidence:
    keys = [one.record.item.key for one in shown]
    truth = [LABELS.index(one.record.item.label) for one in shown]
    videos = video_logits([one.logit for one in shown], truth, keys)
    order = np.argsort(videos.of_frame, kind="stable")
    frames = np.split(order, np.cumsum(videos.num_frames)[:-1])
    distances = np.array([one.distance for one in shown])
    middle = [shown[own[len(own) // 2]].record for own in frames]
    # Of whole images it is not the tiles' sharpness, by which they are judged.
    unknown = crop.source == "native"
    sharpness = [math.nan if unknown else _sharpness(record) for record in middle]
    tiles = crop.tiles if crop.source == "native" else 1
    return Evidence(
        videos=videos,
        distances=np.array([np.median(distances[own]) for own in frames]),
        sharpness=np.array(sharpness),
        identities=[record.component for record in middle],
        num_frames=max(1, int(videos.num_frames.max()) // tiles),
        num_lost=num_lost,
    )


def _sharpness(record: Record) -> float:
    try:
        return float(measure_sharpness(open_image(read_source(record))))
    except ImageError:
        return math.nan
