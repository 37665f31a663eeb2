"""Precisions (fp16, int8): graphs of fewer bits, written, measured on real validation data and compared with torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vfm_runtime.bundle.contract import MODEL_FILE, PRECISION_FILES
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.tasks.base import Arrays, Prediction

from vfm.bundle.accuracy import AccuracyMeter
from vfm.bundle.parity import time_each
from vfm.quantization.fp16 import write_fp16
from vfm.quantization.search import BudgetError, is_within, quantize_within_budget


def write_precision(
    name: str, folder: Path, meter: AccuracyMeter, samples: Sequence[Arrays], max_drop: float
) -> dict[str, Any]:
    """Write the graph of a precision beside that of float32, so that it stays within its budget.

    Args:
        name: Name of the precision, `fp16` or `int8`.
        folder: The bundle's folder, with `model.onnx` in it.
        meter: What measures graphs on the validation data.
        samples: Batches of images, from which the ranges of 8 bits are taken.
        max_drop: Largest loss of the metric, in points: hundredths.

    Returns:
        What was measured, for `parity.json`: among others the metric `before`, in float32, and `after`, both 0 to 1;
        `drop`, in points; `figures`, the metric by head; and `how` int8 was brought within its budget.

    Raises:
        BudgetError: It cannot be had within the budget.
    """
    source, target = folder / MODEL_FILE, folder / PRECISION_FILES[name]
    how: dict[str, Any] = {}
    if name == "int8":
        how = quantize_within_budget(source, target, samples, meter.measure, max_drop=max_drop)
    else:
        write_fp16(source, target)
    figures = meter.measure_heads(target)
    before, after = meter.combine(meter.baseline), meter.combine(figures)
    drop = 100 * (before - after)
    if not is_within(drop, max_drop):
        target.unlink()
        raise BudgetError(
            f"In {name} the {meter.metric} drops by {drop:.2f} points, from {before:.4f} to {after:.4f}; "
            f"--max_drop is {max_drop:g}. Leave --{name} out, or allow more."
        )
    return {
        "name": name,
        "metric": meter.metric,
        "before": before,
        "after": after,
        "figures": figures,
        "num_images": meter.num_images,
        "num_bytes": target.stat().st_size,
        "how": how,
        "drop": drop,
    }


def compare_precision(
    model: Predictor, paths: Sequence[Path], predictions: Sequence[Prediction]
) -> dict[str, Any]:
    """Compare a precision of a bundle with the model's own predictions.

    Args:
        model: The bundle, loaded in that precision.
        paths: Files of the images that were predicted.
        predictions: Predictions of the model, in the order of `paths`.

    Returns:
        For JSON: `max_difference` and `mean_difference` of a score, alone or in a batch; `num_changed`, images with
        another answer; `onnx_ms`, the median time of one image from the file to the answer.
    """
    alone, onnx_ms = time_each(model, paths)
    together = model.predict(list(paths), batch_size=7)
    rows = [
        [expected.compare(actual, approximate=True) for actual in both]
        for expected, *both in zip(predictions, alone, together, strict=True)
    ]
    worst = [max(one.difference for one in both) for both in rows]
    return {
        "max_difference": max(worst),
        "mean_difference": statistics.fmean(worst),
        "num_changed": sum(any(one.changed for one in both) for both in rows),
        "onnx_ms": onnx_ms,
    }
