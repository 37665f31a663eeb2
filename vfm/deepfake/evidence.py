"""Calibration evidence: what a deepfake model says of videos that it has not seen, to fit an operating point on."""

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
from vfm.deepfake.metrics import Videos
from vfm.deepfake.results import join_records
from vfm.tasks.calibration import CalibrationError
from vfm.tasks.results import Collector
from vfm.tasks.validation import Run


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
        sharpness=np.array([math.nan if native else _measure(record) for record in middle]),
        identities=[record.component for record in middle],
        num_frames=max(1, int(videos.num_frames.max()) // (crop.tiles if native else 1)),
        num_lost=len(scored.lost),
    )


def _measure(record: Record) -> float:
    try:
        return measure_sharpness(open_image(read_source(record)))
    except ImageError:
        return math.nan
