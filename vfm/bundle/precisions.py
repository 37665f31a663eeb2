"""Graphs of fewer bits: written, measured on real validation data, and compared with the model on real images."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import vfm_runtime
from vfm_runtime.bundle.contract import MODEL_FILE, PRECISION_FILES
from vfm_runtime.tasks.base import Arrays, Prediction

from vfm.bundle.accuracy import Measure
from vfm.bundle.parity import timed
from vfm.quantization.fp16 import write_fp16
from vfm.quantization.search import BudgetError, is_within, within_budget


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


@dataclass(frozen=True)
class Compared:
    """The answers of a precision beside those of the model, on the images of the parity check."""

    max_difference: float
    """Largest difference of a score, alone or in a batch."""
    mean_difference: float
    num_changed: int
    """Images with another answer."""
    onnx_ms: float
    """Median time of one image from the file to the answer."""


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
        how = within_budget(source, target, samples, measure, max_drop=max_drop).to_dict()
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
    folder: Path, precision: str, paths: Sequence[Path], answers: Sequence[Prediction]
) -> Compared:
    """Compare a precision of a bundle with the model's own answers.

    Args:
        folder: Of the bundle, with its manifest.
        precision: `fp16` or `int8`.
        paths: Of the images that were answered.
        answers: The model's.
    """
    model = vfm_runtime.load(folder, device="cpu", precision=precision)
    alone, onnx_ms = timed(model, paths)
    together = model.predict(list(paths), batch_size=7)
    rows = [
        [expected.compare(got, approximate=True) for got in both]
        for expected, *both in zip(answers, alone, together, strict=True)
    ]
    worst = [max(one.difference for one in both) for both in rows]
    changed = sum(any(one.changed for one in both) for both in rows)
    return Compared(max(worst), statistics.fmean(worst), changed, onnx_ms)


def to_dict(precision: Precision, compared: Compared) -> dict[str, Any]:
    """Plain values of both, for `parity.json`.

    Args:
        precision: As written.
        compared: As compared.
    """
    return {**asdict(precision), "drop": precision.drop, **asdict(compared)}
