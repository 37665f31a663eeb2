"""Probe of a pretraining: labelled images on which kNN tells what a backbone is worth, and not to be trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.cpu_quota import count_usable_cores
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.media.image import ImageError
from vfm_runtime.tasks.embedding import OUTPUT

from vfm.data.auto import SourceError, draw_indices, open_labels
from vfm.data.records import Record, list_labels, read_source
from vfm.heads_on_features.neighbors import score_neighbors
from vfm.metrics import compute_accuracy, compute_interval
from vfm.tasks import BaseTask
from vfm.tasks.predictor import TorchPredictor, run_torch
from vfm.tasks.pretraining.results import measure_embeddings

_BATCH = 64
_MOST_THREADS = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """What a backbone was worth after some training."""

    name: str
    hours: float
    """Hours of training until then, of this method alone."""
    kwh: float | None
    """Kilowatt-hours likewise; None where they are not measurable."""
    steps: int
    knn: float
    low: float
    high: float
    """Accuracy of kNN on the probe, with its 95 % interval over images."""
    rankme: float
    uniformity: float
    width: int
    """Width of the embeddings."""

    def to_dict(self) -> dict[str, Any]:
        """Return the point as JSON."""
        return asdict(self)


class LabeledProbe:
    """Labelled images, and what kNN makes of them: of val by train where both are stated, else of each by all others.

    A test split is left alone, `held_out`.
    """

    def __init__(self, path: Path, num_images: int, seed: int) -> None:
        """Read the images of a folder, a table or IDX files.

        Args:
            path: The labelled images; a test split that they state is left alone.
            num_images: Most images of a split.
            seed: Seed of the draw where there are more.

        Raises:
            SourceError: There is nothing at the path.
            DataError: There are fewer than two classes, or fewer than four images.
            OptionError: Images have several labels, or `num_images` is too small.
        """
        if num_images < 4:
            raise OptionError(f"--num-probe is {num_images}. Give 4 or more.")
        if not path.exists():
            raise SourceError(
                f"--probe {path} does not exist. Give a folder of class folders, a table of labelled images, or a "
                "folder of IDX files, by which the features are judged."
            )
        data = open_labels(path)
        if data.multilabel:
            raise OptionError(
                f"--probe {path} has several labels an image. Give images of one label each."
            )
        splits = {name: part for name in ("train", "val") if (part := data.records.get(name))}
        if len(splits) == 2:
            self.kind = "the val split, voted on by the train split"
        else:
            self.kind = "each image voted on by all others"
        records = list(splits.values())
        self.parts = [
            [part[i] for i in draw_indices(part, num_images, seed)]
            if len(part) > num_images
            else part
            for part in ([r for r in part if list_labels(r)] for part in records)
        ]
        classes = {r.label for part in self.parts[:1] for r in part}
        count = sum(map(len, self.parts))
        if len(classes) < 2 or count < 4:
            raise DataError(
                f"--probe {path} has {count} images of {len(classes)} classes to judge by. Give images of two classes "
                "or more, some of each."
            )
        self.path = path
        self.labels = data.labels
        self.held_out = data.records.get("test", [])
        self.pixels: list[NDArray[np.uint8]] = []

    @property
    def num_judged(self) -> int:
        """Number of images that are asked about."""
        return len(self.parts[-1])

    def prepare(self, task: BaseTask) -> None:
        """Bring all images to the size of a model, once for all models of this preprocessing.

        Raises:
            DataError: No image can be read.
        """
        predictor = TorchPredictor(task)

        def open_one(record: Record) -> NDArray[np.uint8] | ImageError | OSError:
            try:
                pixels: NDArray[np.uint8] = predictor.prepare(read_source(record))["pixels"][0]
            except (ImageError, OSError) as error:
                return error
            return pixels

        with ThreadPoolExecutor(min(_MOST_THREADS, count_usable_cores())) as pool:
            opened = [list(pool.map(open_one, part)) for part in self.parts]
        failed = [o for part in opened for o in part if not isinstance(o, np.ndarray)]
        if failed:
            log.warning("%d images of the probe cannot be read: %s", len(failed), failed[0])
        pairs = [
            [(r, o) for r, o in zip(part, row, strict=True) if isinstance(o, np.ndarray)]
            for part, row in zip(self.parts, opened, strict=True)
        ]
        if not all(pairs):
            raise DataError(f"No image of --probe {self.path} can be read: {failed[0]}")
        self.parts = [[record for record, _ in part] for part in pairs]
        self.pixels = [np.stack([pixels for _, pixels in part]) for part in pairs]

    def measure(
        self, task: BaseTask, name: str, *, hours: float, kwh: float | None, steps: int
    ) -> Point:
        """Return what the embeddings of a model are worth; arguments are those of `Point`."""
        was_training = task.training
        task.eval()
        vectors = [
            np.concatenate(
                [
                    run_torch(task.answer, {"pixels": pixels[i : i + _BATCH]}, task.device)[OUTPUT]
                    for i in range(0, len(pixels), _BATCH)
                ]
            )
            for pixels in self.pixels
        ]
        task.train(was_training)
        judged = self.parts[-1]
        # Rank and uniformity need no labels; kNN among the same images is what leaves one out.
        quality = measure_embeddings(vectors[-1], judged, len(self.labels))
        right = quality.right
        if len(self.parts) == 2:
            target = np.eye(len(self.labels), dtype=np.float32)[_list_classes(self.parts[0])]
            votes = score_neighbors(vectors[1], vectors[0], target)
            right = votes.argmax(axis=1) == _list_classes(judged)
        num_right = int(right.sum())
        counts = np.array([[num_right, len(right) - num_right], [0, 0]])
        interval = compute_interval(compute_accuracy, counts)
        return Point(
            name=name,
            hours=hours,
            kwh=kwh,
            steps=steps,
            knn=interval.value,
            low=interval.low,
            high=interval.high,
            rankme=quality.metrics["rankme"],
            uniformity=quality.metrics.get("uniformity", 0.0),
            width=vectors[-1].shape[1],
        )


def _list_classes(records: Sequence[Record]) -> NDArray[np.int64]:
    return np.array([list_labels(record)[0] for record in records], np.int64)
