"""`vfm calibrate`: fit temperature and thresholds of any task's checkpoint, and write them beside it for the export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vfm.tasks.calibration import (
    CALIBRATION_FILE,
    CalibrationOptions,
    CalibrationResult,
    list_confidence,
)
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.predictor import run_torch

_NO_OPTIONS = CalibrationOptions()


def calibrate(
    checkpoint: Path,
    data: Path | None = None,
    *,
    options: CalibrationOptions = _NO_OPTIONS,
    base: Path | None = None,
    trust: Sequence[str] = (),
) -> None:
    """Make scores probabilities and set thresholds, on images that the model was neither trained nor tested on.

    Writes calibration.json beside the checkpoint, which `vfm export` takes into the bundle: what was fitted, on what,
    and for which file. A model that answers for videos gets operating_point.json besides, for the rate of false alarms
    that is named: on average over videos like those here; with other cameras, codecs or people it may be more.

    Args:
        checkpoint: A .ckpt file of a training run, or its adapter.safetensors.
        data: Labelled images, a folder or a table as for training, or a manifest; by default the val split of the
            training, which chose the checkpoint: other data is better. A head that was solved on all images has
            out-of-fold scores of these.
        options: What to hold to.
        base: For an adapter, the file of the backbone's weights where it is no longer at its old place.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        CalibrationError: Nothing can be fitted on these images, or the task has no such option.
        ValidationError: There are no such images, or some were trained or tested on.
    """
    opened = Checkpoint.open(checkpoint, base=base, trust=trust)
    task = opened.task
    options.refuse_others(task.calibration_options, type(task).__name__)
    if data is None and opened.out_of_fold is not None:
        source, judged = opened.out_of_fold
        print(f"Taking the out-of-fold scores of {len(source.positions)} training images.")
        fitted = judged.fit_calibration({}, options, source)
        lines = list_confidence(fitted.rules, fitted)
        result = CalibrationResult(source, fitted.to_dict(), lines)
    else:
        source = opened.select_calibration_images(data, options)
        print(f"Scoring {len(source.positions)} images ...", flush=True)
        run = partial(run_torch, task.answer, device=task.device)
        result = task.calibrate(source, run, options)
    root = getattr(source.data, "root", None)
    header = {
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": opened.checksum,
        "data": str(data or root or type(source.data).__name__),
        "images_fingerprint": result.source.fingerprint,
    }
    folder = Path(checkpoint).parent
    files = {**result.files, CALIBRATION_FILE: {**header, **result.details}}
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    written = " and ".join(str(folder / name) for name in files)
    print("\n".join([*result.lines, f"Written: {written}"]))
