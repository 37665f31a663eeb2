"""Parity: proof that a bundle predicts as the torch model does, both from the same files on disk, one by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import vfm_runtime
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.errors import VfmError
from vfm_runtime.media.image import ImageError
from vfm_runtime.media.video import find_media, is_video, read_video
from vfm_runtime.tasks.base import Prediction
from vfm_runtime.tasks.embedding import measure_cosine

MIN_IMAGES = 32
"""Least number of images that prove anything, unless fewer are asked for."""

LEAST_COSINE = 0.9999
"""Least cosine of the embeddings that model and bundle give for one image."""

_SHOWN = 5


class ParityError(VfmError, ValueError):
    """The bundle's answers are not those of the model."""


@dataclass(frozen=True)
class ImageParity:
    """One image, or video, both ways."""

    name: str
    size: tuple[int, int]
    """Height and width of the file's image, or of the video's frames."""
    difference: float
    """Largest difference of a score, alone or in a batch of mixed sizes."""
    changed: bool
    """Whether the best label is another, a box has no partner, or other pictures were compared."""
    torch_label: str
    onnx_label: str


@dataclass(frozen=True)
class Parity:
    """The model against its bundle on real images."""

    images: tuple[ImageParity, ...]
    tolerance: float
    skipped: dict[str, str]
    """Reason by file that could not be read."""
    torch_ms: float
    """Median time of one image from the file to the answer, torch on the CPU."""
    onnx_ms: float
    """The same through the bundle."""
    device: str
    predictions: tuple[Prediction, ...] = ()
    """The model's own, of each of `images`."""

    @property
    def max_difference(self) -> float:
        """Largest difference of a probability over all images."""
        return max(image.difference for image in self.images)

    @property
    def num_changed(self) -> int:
        """Images whose best label is another, or of which a box has no partner."""
        return sum(image.changed for image in self.images)

    @property
    def passed(self) -> bool:
        """Whether every difference is within the tolerance and no best label changed."""
        return self.max_difference <= self.tolerance and self.num_changed == 0

    def rank_worst(self) -> list[ImageParity]:
        """Return a few of the images that differ most, changed labels first."""
        return sorted(self.images, key=lambda i: (i.changed, i.difference), reverse=True)[:_SHOWN]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `parity.json`."""
        return {
            "passed": self.passed,
            "num_images": len(self.images),
            "max_difference": self.max_difference,
            "mean_difference": statistics.fmean(image.difference for image in self.images),
            "top1_changes": self.num_changed,
            "tolerance": self.tolerance,
            "torch_ms": self.torch_ms,
            "onnx_ms": self.onnx_ms,
            "device": self.device,
            "skipped": self.skipped,
            "images": [asdict(image) for image in self.images],
        }

    def __str__(self) -> str:
        return (
            f"{len(self.images)} images: largest difference {self.max_difference:.1e}, "
            f"{self.num_changed} with another answer"
        )


def choose_images(folder: Path, count: int, *, videos: bool = False) -> list[Path]:
    """Choose images spread evenly over a folder.

    Raises:
        ParityError: There are too few.
    """
    require_folder(folder)
    paths = find_media(folder, videos=videos)
    needed = min(count, MIN_IMAGES)
    if len(paths) < needed:
        raise ParityError(
            f"{folder} holds {len(paths)} images{' and videos' if videos else ''}; parity needs at least {needed}. "
            f"Give a folder with more to --images, or ask for fewer with --num_images."
        )
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[i] for i in chosen]


def require_folder(folder: Path) -> None:
    """Refuse a folder that is not there, with a ParityError."""
    if not folder.is_dir():
        raise ParityError(f"There is no folder {folder}. Give one with real images to --images.")


def compare(
    model: Predictor, runtime: vfm_runtime.Model, paths: Sequence[Path], tolerance: float
) -> Parity:
    """Predict every image by torch, by the bundle alone and by the bundle in batches of mixed sizes.

    Args:
        model: Torch's side of the bundle, on the CPU, in float32.
        runtime: The bundle, loaded on the CPU in float32.
        paths: Image files, and videos where the model takes them.
        tolerance: Largest accepted difference of a score.

    Raises:
        ParityError: No image can be read, or the answers prove nothing.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    skipped: dict[str, str] = {}
    for path in paths:
        try:
            pixels = (
                read_video(path, 1).frames[0].pixels if is_video(path) else model.open_pixels(path)
            )
            height, width = pixels.shape[:2]
            sizes[path] = (height, width)
        except ImageError as error:
            skipped[str(path)] = error.reason
    if not sizes:
        raise ParityError(
            f"None of the {len(paths)} images can be read: {next(iter(skipped.values()))}"
        )
    predictions, torch_ms = time_each(model, list(sizes))
    if all(prediction.is_empty for prediction in predictions):
        raise ParityError(
            f"In none of the {len(predictions)} images and videos was there anything to run the model on "
            f"({predictions[0].headline()}), so nothing was compared. Give others to --images."
        )
    alone, onnx_ms = time_each(runtime, list(sizes))
    together = runtime.predict(list(sizes), batch_size=7)
    images = []
    rows = zip(sizes.items(), predictions, alone, together, strict=True)
    for (path, size), expected, single, batched in rows:
        # A prediction that changes in either way counts.
        both = [expected.compare(actual) for actual in (single, batched)]
        worst = max(both, key=lambda one: (one.changed, one.difference))
        difference = max(one.difference for one in both)
        images.append(
            ImageParity(str(path), size, difference, worst.changed, worst.expected, worst.actual)
        )
    return Parity(
        tuple(images), tolerance, skipped, torch_ms, onnx_ms, runtime.device, tuple(predictions)
    )


def compare_embeddings(model: Predictor, runtime: vfm_runtime.Model, paths: Sequence[Path]) -> None:
    """Compare the embeddings of a bundle, where it gives any, with those of the model; arguments are `compare`'s.

    Raises:
        ParityError: The cosine of two is below `LEAST_COSINE`.
    """
    if runtime.embedding is None or runtime.task_type.uses_crops:
        return
    cosines = measure_cosine(model.embed(list(paths)), runtime.embed(list(paths)))
    worst = int(cosines.argmin())
    if not cosines[worst] >= LEAST_COSINE:
        raise ParityError(
            f"The bundle does not embed as the model does: the cosine of the two vectors of {paths[worst]} is "
            f"{cosines[worst]:.6f}, and must be {LEAST_COSINE} or more. Export in 32 bits with another --opset."
        )


def raise_disagreement(parity: Parity, where: Path) -> NoReturn:
    """Raise a ParityError with the worst images of a comparison that has not passed."""
    rows = "\n".join(
        f"  {i.name}: difference {i.difference:.2e}, torch '{i.torch_label}', ONNX '{i.onnx_label}'"
        for i in parity.rank_worst()
    )
    raise ParityError(
        f"The bundle does not agree with the model on {len(parity.images)} images: largest difference "
        f"{parity.max_difference:.2e} (tolerance {parity.tolerance:.0e}), {parity.num_changed} with another answer.\n"
        f"{rows}\n"
        f"It is kept for a look in {where}; do not ship it."
    )


def time_each(model: Predictor, paths: Sequence[Path]) -> tuple[list[Prediction], float]:
    """Predict each file, an image or a video, alone; return the median time of one in milliseconds too."""
    model.predict(paths[0])  # the first call of a graph is slower
    predictions, times = [], []
    for path in paths:
        start = time.perf_counter()
        predictions.append(model.predict(path))
        times.append(time.perf_counter() - start)
    return predictions, 1000 * statistics.median(times)
