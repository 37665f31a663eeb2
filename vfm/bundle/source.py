"""What is exported: tasks of checkpoints, and what is known of them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vfm_runtime.bundle.predictor import Arrays

from vfm.bundle.errors import ExportError
from vfm.bundle.images import remembered
from vfm.bundle.multi_head import checkpoints_of, require_one_backbone
from vfm.bundle.options import Options
from vfm.bundle.validation import validation
from vfm.tasks import BaseTask
from vfm.tasks.checkpoint import KEY, read_any
from vfm.tasks.classification.results import RESULTS_FILE
from vfm.tasks.labelled_images import ValidationError, open_images
from vfm.tasks.validation import Validation

NUM_SAMPLES = 64
"""Images from which the ranges of 8 bits are taken."""
SAMPLE_BATCH = 8

log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A task to be exported, and what is known of it."""

    task: BaseTask
    origin: Mapping[str, Any]
    """The checkpoint's own entry: data, seed, versions."""
    results: Mapping[str, Any]
    """Metrics by split, for the card."""
    validation: Validation | None = None
    """Images that nothing was learned from, where something is fitted or measured on them."""
    checkpoint: Path | None = None
    """The file that it was loaded from, where its training images are asked for."""
    samples: Sequence[Arrays] = ()
    """Batches of training images, from which the ranges of 8 bits are taken."""


def load_all(
    checkpoints: Sequence[str],
    options: Options,
    *,
    data: Path | None = None,
    base: Path | None = None,
) -> dict[str, Trained]:
    """The tasks of checkpoints by the names of their heads; that of a single one is empty.

    Args:
        checkpoints: Files, or NAME=FILE.
        options: Say whether validation images are needed.
        data: Where those are.
        base: As for `export`.

    Raises:
        ExportError: They do not go together.
    """
    # From Python a single one is given as it is.
    single = isinstance(checkpoints, str | os.PathLike)
    named = checkpoints_of([checkpoints] if single else checkpoints)  # type: ignore[list-item]
    if data is not None and not options.needs_validation:
        raise ExportError(
            f"--data is {data}, but nothing is measured or fitted on it. Add --int8, --fp16, --calibrate or "
            "--reference, or leave it out."
        )
    if data is not None and len(named) > 1:
        raise ExportError(
            f"--data is {data}, but there are {len(named)} checkpoints with labels of their own. Leave it out: each is "
            "validated on the val split of its training."
        )
    tasks: dict[str, BaseTask] = {
        name: BaseTask.load(file, base=base, trust=options.trust) for name, file in named.items()
    }
    if len(tasks) == 1:
        ((name, task),) = tasks.items()
        return {"": trained_of(task, named[name], options, data)}
    require_one_backbone(tasks)
    return {name: trained_of(task, named[name], options) for name, task in tasks.items()}


def trained_of(
    task: BaseTask, checkpoint: Path, options: Options, data: Path | None = None
) -> Trained:
    """A task with all that is known of it.

    Args:
        task: As loaded.
        checkpoint: Its file, with results beside it, if any.
        options: Say whether validation images are needed.
        data: Where those are; by default the val split of the training.
    """
    found = checkpoint.parent / RESULTS_FILE
    results = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    images = None
    if options.needs_validation:
        images = validation(checkpoint, task, data, trust=options.trust)
    samples = _samples(checkpoint, task, options) if options.int8 else []
    return Trained(task, read_any(checkpoint)[KEY], results, images, checkpoint, samples)


def _samples(checkpoint: Path, task: BaseTask, options: Options) -> list[Arrays]:
    """Batches of training images; none where they are gone."""
    try:
        source = remembered(checkpoint, task, split="train", trust=options.trust)
    except ValidationError as error:
        log.warning(
            "The ranges of 8 bits are taken from validation images, on which the bundle is then measured, since the "
            "training images are gone: %s",
            error,
        )
        return []
    inputs = open_images(
        source, task.preprocess, places=task.head.places, max_images=NUM_SAMPLES
    ).inputs
    starts = range(0, len(inputs["pixels"]), SAMPLE_BATCH)
    return [{n: values[at : at + SAMPLE_BATCH] for n, values in inputs.items()} for at in starts]
