"""Labelled images for an export: a split of the data that a checkpoint remembers, or data that is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vfm.data import ImageData
from vfm.spec import Spec, build
from vfm.tasks import BaseTask
from vfm.tasks.checkpoint import KEY, read_any
from vfm.tasks.labelled_images import LabelledImages, ValidationError

Split = Literal["train", "val"]

_STAGES = {"train": None, "val": "validate"}


def remembered(
    checkpoint: Path, task: BaseTask, *, split: Split = "val", trust: Sequence[str] = ()
) -> LabelledImages:
    """A split of the data that a checkpoint was trained on.

    Args:
        checkpoint: A .ckpt file, or an adapter.
        task: That was loaded from it.
        split: Of the training.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        ValidationError: The checkpoint names no data, or they are not there any more.
        SpecError: The data is of code that is not trusted.
    """
    spec = spec_of(checkpoint)
    if spec is None:
        raise ValidationError(
            f"{checkpoint} does not say what it was trained on. Name images with labels: --data FOLDER."
        )
    data: ImageData = build(spec, base=ImageData, trust=trust)
    try:
        data.setup(_STAGES[split])
    except (ValueError, OSError) as error:
        raise ValidationError(
            f"The data that {checkpoint} was trained on gives no {split} images: {error}\n"
            "Name other images with labels: --data FOLDER."
        ) from error
    if not data.records.get(split):
        raise ValidationError(
            f"The data that {checkpoint} was trained on has no {split} images. Name others with labels: --data FOLDER."
        )
    task.check_data(data)
    return LabelledImages.of_splits(data, [split])


def given(path: Path, task: BaseTask, spec: Spec | None = None) -> LabelledImages:
    """The images of data that has nothing to do with the training: its val split where it states one, else all.

    Args:
        path: A folder or a table, in any layout that the task learns from.
        task: The model; it decides how the data is read.
        spec: Of the data of the training, whose columns and tiles are taken over.

    Raises:
        ValidationError: There is nothing, or nothing that can be read in such a way.
    """
    if not path.exists():
        raise ValidationError(
            f"There is no {path} (looked in {Path.cwd()}). Give --data a folder or a table of images with labels."
        )
    try:
        source = task.open_data(path, spec or {})
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error}") from error
    if not source.positions:
        raise ValidationError(
            f"{path} holds images, but no labels. Put them into folders named by class, or give a table of them."
        )
    task.check_data(source.data)
    return source


def spec_of(checkpoint: Path) -> Spec | None:
    """The spec of the data that a checkpoint was trained on; None where it does not say.

    Args:
        checkpoint: A .ckpt file, or an adapter.
    """
    spec: Spec | None = (read_any(checkpoint)[KEY]["data"] or {}).get("spec")
    return spec


def is_root(spec: Spec | None, path: Path) -> bool:
    """Whether a path is that of the data of the training.

    Args:
        spec: Of that data.
        path: A folder or a file.
    """
    places = [(spec or {}).get("init_args", {}).get(name) for name in ("root", "table", "manifest")]
    return any(place is not None and Path(place).resolve() == path.resolve() for place in places)
