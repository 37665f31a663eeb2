"""What an export of a checkpoint is validated on: images that the model has not learned from."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from vfm.bundle.images import given, is_root, remembered, spec_of
from vfm.tasks import BaseTask
from vfm.tasks.labelled_images import MAX_IMAGES, LabelledImages, ValidationError, open_images
from vfm.tasks.validation import Validation

log = logging.getLogger(__name__)


def validation(
    checkpoint: Path,
    task: BaseTask,
    data: Path | None = None,
    *,
    trust: Sequence[str] = (),
    max_images: int = MAX_IMAGES,
) -> Validation:
    """Real images with their truth for the model of a checkpoint.

    Args:
        checkpoint: A .ckpt file of a training run, or its adapter.
        task: That was loaded from it.
        data: A folder or a table with labels: its val split where it states one, else all of it. By default, and where
            it is the data of the training, the val split of the training.
        trust: Packages besides vfm whose code the checkpoint may name.
        max_images: Most images that are kept, spread evenly.

    Raises:
        ValidationError: There are no such images, or some were trained on.
        LabelError: Their labels are not those of the model.
    """
    spec = spec_of(checkpoint)
    if data is None or is_root(spec, data):
        source = remembered(checkpoint, task, trust=trust)
    else:
        source = given(data, task, spec)
        _require_unseen(source, checkpoint, task, trust)
    images = open_images(source, task.preprocess, places=task.head.places, max_images=max_images)
    return task.validation(images)


def _require_unseen(
    source: LabelledImages, checkpoint: Path, task: BaseTask, trust: Sequence[str]
) -> None:
    """Refuse images that the model has learned from: on them it is better than it will ever be again."""
    try:
        trained = remembered(checkpoint, task, split="train", trust=trust)
    except ValidationError:
        log.warning(
            "The training data is not where it was, so it cannot be checked that none of these images was trained on."
        )
        return
    seen = set(_places(trained))
    known = [place for place in _places(source) if place in seen]
    if known:
        raise ValidationError(
            f"{len(known)} of these {len(source.records)} images were trained on, such as {known[0]}. On them the "
            "model does better than it will ever do again. Leave --data out for the val split of the training, or "
            "give others."
        )


def _places(source: LabelledImages) -> list[str]:
    """Where the files really lie; for speed the links of a folder are followed once."""
    paths = [os.path.split(r.source) for r in source.records if isinstance(r.source, str)]
    folders = {folder: os.path.realpath(folder) for folder in {folder for folder, _ in paths}}
    places = [os.path.join(folders[folder], name) for folder, name in paths]  # noqa: PTH118
    return [os.path.realpath(p) if os.path.islink(p) else p for p in places]  # noqa: PTH114
