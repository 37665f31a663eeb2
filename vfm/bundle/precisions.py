"""Graphs of fewer bits: written, measured on real validation data, and compared with the model on real images."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vfm_runtime.bundle.contract import MODEL_FILE, PRECISION_FILES
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.tasks.base import Arrays, Prediction

from vfm.bundle.accuracy import Measure
from vfm.bundle.parity import timed
from vfm.quantization.fp16 import write_fp16
from vfm.quantization.search import BudgetError, is_within, quantize_within_budget
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.labelled_images import OpenedImages, ValidationError

NUM_SAMPLES = 64
"""Images from which the ranges of 8 bits are taken."""
SAMPLE_BATCH = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """A graph of fewer bits, beside that of float32."""

    name: str
    """`fp16` or `int8`."""
    metric: str
    """Name of the figure that it was measured by."""
    before: float
    """The figure in float32, 0 to 1."""
    after: float
    """The figure in this precision."""
    figures: dict[str, float]
    """In this precision, by head; the name of a single one is empty."""
    num_images: int
    """Validation images that it was measured on."""
    num_bytes: int
    """Of the file."""
    how: dict[str, Any]
    """How it was brought within its budget."""

    @property
    def drop(self) -> float:
        """What the figure loses, in points: hundredths."""
        return 100 * (self.before - self.after)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `parity.json`."""
        return {**asdict(self), "drop": self.drop}


def open_samples(checkpoint: Checkpoint, training: OpenedImages | None = None) -> list[Arrays]:
    """Batches of training images, from which the ranges of 8 bits are taken; none, with a warning, where they are gone.

    Args:
        checkpoint: What is exported.
        training: Its training images, where they are open already.
    """
    try:
        images = training or checkpoint.open_images("train", NUM_SAMPLES)
    except ValidationError as error:
        log.warning(
            "The ranges of 8 bits are taken from validation images, on which the bundle is then measured, since the "
            "training images are gone: %s",
            error,
        )
        return []
    return list(images.iterate_batches(SAMPLE_BATCH, NUM_SAMPLES))


def write_precision(
    name: str, folder: Path, measure: Measure, samples: Sequence[Arrays], max_drop: float
) -> Precision:
    """Write the graph of a precision beside that of float32, so that it stays within its budget.

    Args:
        name: `fp16` or `int8`.
        folder: Of the bundle, with `model.onnx` in it.
        measure: Of the validation data.
        samples: Batches of images, from which the ranges of 8 bits are taken.
        max_drop: Largest loss of the figure, in points.

    Raises:
        BudgetError: It cannot be had within the budget.
    """
    source, target = folder / MODEL_FILE, folder / PRECISION_FILES[name]
    how: dict[str, Any] = {}
    if name == "int8":
        how = quantize_within_budget(source, target, samples, measure, max_drop=max_drop)
    else:
        write_fp16(source, target)
    figures = measure.figures(target)
    before, after = measure.overall(measure.baseline), measure.overall(figures)
    found = Precision(
        name, measure.metric, before, after, figures, measure.num_images, target.stat().st_size, how
    )
    if not is_within(found.drop, max_drop):
        target.unlink()
        raise BudgetError(
            f"In {name} the {found.metric} drops by {found.drop:.2f} points, from {before:.4f} to {after:.4f}; "
            f"--max_drop is {max_drop:g}. Leave --{name} out, or allow more."
        )
    return found


def compare_precision(
    model: Predictor, paths: Sequence[Path], answers: Sequence[Prediction]
) -> dict[str, Any]:
    """Compare a precision of a bundle with the model's own answers.

    Args:
        model: The bundle, loaded in that precision.
        paths: Files of the images that were answered.
        answers: Answers of the model.

    Returns:
        For JSON: `max_difference` and `mean_difference` of a score, alone or in a batch; `num_changed`, images with
        another answer; `onnx_ms`, the median time of one image from the file to the answer.
    """
    alone, onnx_ms = timed(model, paths)
    together = model.predict(list(paths), batch_size=7)
    rows = [
        [expected.compare(got, approximate=True) for got in both]
        for expected, *both in zip(answers, alone, together, strict=True)
    ]
    worst = [max(one.difference for one in both) for both in rows]
    return {
        "max_difference": max(worst),
        "mean_difference": statistics.fmean(worst),
        "num_changed": sum(any(one.changed for one in both) for both in rows),
        "onnx_ms": onnx_ms,
    }
