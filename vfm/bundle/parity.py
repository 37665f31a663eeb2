"""Proof that a bundle answers as the model does: both ways from the same files on disk, one by one."""

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
from vfm_runtime.media.image import ImageError, Pixels, open_image
from vfm_runtime.media.video import find_media, is_video, read_video
from vfm_runtime.tasks.base import Prediction

from vfm.tasks.predictor import TorchPredictor

MIN_IMAGES = 32
"""Least number of images that prove anything, unless fewer are asked for."""

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
    answers: tuple[Prediction, ...] = ()
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

    def worst(self, count: int = _SHOWN) -> list[ImageParity]:
        """The images that differ most, changed labels first."""
        return sorted(self.images, key=lambda i: (i.changed, i.difference), reverse=True)[:count]

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
    """Up to `count` images spread evenly over a folder.

    Args:
        folder: Where to look, also in the folders below it.
        count: How many at most.
        videos: Whether to take videos too.

    Raises:
        ParityError: There are too few.
    """
    require_folder(folder)
    found = find_media(folder, videos=videos)
    needed = min(count, MIN_IMAGES)
    if len(found) < needed:
        raise ParityError(
            f"{folder} holds {len(found)} images{' and videos' if videos else ''}; parity needs at least {needed}. "
            f"Give a folder with more to --images, or ask for fewer with --num_images."
        )
    picks = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [found[i] for i in picks]


def require_folder(folder: Path) -> None:
    """Refuse a folder that is not there.

    Raises:
        ParityError: With the folder.
    """
    if not folder.is_dir():
        raise ParityError(f"There is no folder {folder}. Give one with real images to --images.")


def compare(
    model: TorchPredictor, runtime: vfm_runtime.Model, paths: Sequence[Path], tolerance: float
) -> Parity:
    """Prediction every image by torch, by the bundle alone and by the bundle in batches of mixed sizes.

    Args:
        model: Torch's side of the bundle, on the CPU, in float32.
        runtime: The bundle, loaded on the CPU in float32.
        paths: Image files, and videos where the model takes them.
        tolerance: Largest accepted difference of a score.

    Raises:
        ParityError: No image can be read, or the answers prove nothing.
    """
    readable, skipped = _readable(paths)
    if not readable:
        raise ParityError(
            f"None of the {len(paths)} images can be read: {next(iter(skipped.values()))}"
        )
    answers, torch_ms = timed(model, list(readable))
    if all(answer.is_empty for answer in answers):
        raise ParityError(
            f"In none of the {len(answers)} images and videos was there anything to run the model on "
            f"({answers[0].headline()}), so nothing was compared. Give others to --images."
        )
    alone, onnx_ms = timed(runtime, list(readable))
    together = runtime.predict(list(readable), batch_size=7)
    images = []
    rows = zip(readable.items(), answers, alone, together, strict=True)
    for (path, size), expected, single, batched in rows:
        # An answer that changes in either way counts.
        both = [expected.compare(got) for got in (single, batched)]
        worst = max(both, key=lambda one: (one.changed, one.difference))
        difference = max(one.difference for one in both)
        images.append(
            ImageParity(str(path), size, difference, worst.changed, worst.expected, worst.actual)
        )
    return Parity(
        tuple(images), tolerance, skipped, torch_ms, onnx_ms, runtime.device, tuple(answers)
    )


def raise_disagreement(parity: Parity, where: Path) -> NoReturn:
    """Refuse a bundle that does not agree.

    Args:
        parity: A comparison that has not passed.
        where: Folder of the rejected bundle.

    Raises:
        ParityError: With the worst images.
    """
    rows = "\n".join(
        f"  {i.name}: difference {i.difference:.2e}, torch '{i.torch_label}', ONNX '{i.onnx_label}'"
        for i in parity.worst()
    )
    raise ParityError(
        f"The bundle does not agree with the model on {len(parity.images)} images: largest difference "
        f"{parity.max_difference:.2e} (tolerance {parity.tolerance:.0e}), {parity.num_changed} with another answer.\n"
        f"{rows}\n"
        f"It is kept for a look in {where}; do not ship it."
    )


def _readable(paths: Sequence[Path]) -> tuple[dict[Path, tuple[int, int]], dict[str, str]]:
    readable: dict[Path, tuple[int, int]] = {}
    skipped: dict[str, str] = {}
    for path in paths:
        try:
            height, width = _opened(path).shape[:2]
            readable[path] = (height, width)
        except ImageError as error:
            skipped[str(path)] = error.reason
    return readable, skipped


def _opened(path: Path) -> Pixels:
    return read_video(path, 1).frames[0].pixels if is_video(path) else open_image(path)


def timed(model: Predictor, paths: Sequence[Path]) -> tuple[list[Prediction], float]:
    """The answer for each file alone, and the median time of one in milliseconds.

    Args:
        model: It is asked once before.
        paths: Of images, or videos.
    """
    model.predict(paths[0])  # the first call of a graph is slower
    answers, times = [], []
    for path in paths:
        start = time.perf_counter()
        answers.append(model.predict(path))
        times.append(time.perf_counter() - start)
    return answers, 1000 * statistics.median(times)
