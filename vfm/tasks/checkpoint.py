"""What a checkpoint carries besides Lightning's own state, and how it is read."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vfm.models.tensors import UnreadableFileError, read_metadata, read_plain
from vfm.renames import update_class_paths

if TYPE_CHECKING:
    from vfm.tasks.base import BaseTask

KEY = "vfm"
"""Entry of the checkpoint that holds everything of vfm."""
ADAPTER_SUFFIX = ".safetensors"
"""How the name of an adapter file ends."""
FORMAT = 1
"""Raised when the entry changes so that older readers would misread it."""

OTHER_DATA = (
    "The images, labels or splits are not those that the checkpoint was trained on: training goes on with the new "
    "ones, and its figures are not comparable with the earlier ones."
)
"""Said when a training goes on with other data."""

_PACKAGES = ("vfm", "torch", "timm", "lightning", "numpy")


class CheckpointError(ValueError):
    """A file is not a checkpoint of vfm, or does not fit."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a model computes."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def entry_of(task: BaseTask) -> dict[str, Any]:
    """What a checkpoint says of a task besides its weights and where they come from."""
    return {
        "format": FORMAT,
        "model": task.spec,
        "head": task.head.spec,
        "labels": list(task.labels),
        "preprocess": task.preprocess.to_dict(),
        "recipe": task.recipe,
        "versions": versions(),
        "seed": torch.initial_seed(),
    }


def read_any(path: str | Path) -> dict[str, Any]:
    """`read_checkpoint`, or what an adapter file holds in the same form.

    Raises:
        CheckpointError: There is no such file, it is damaged, or vfm did not write it.
    """
    path = Path(path)
    if path.suffix != ADAPTER_SUFFIX:
        return read_checkpoint(path)
    if not path.is_file():
        raise CheckpointError(
            f"There is no adapter {path}. Training with --model.adapt lora, effort, ln or linear writes one "
            "beside its checkpoints."
        )
    try:
        metadata, tensors = read_metadata(path), read_plain(path)
    except UnreadableFileError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as an adapter: {error}\nCopy it again."
        ) from error
    if KEY not in metadata:
        raise CheckpointError(
            f"{path} is no adapter of vfm: it says nothing of a task. Bare weights go to --model.weights."
        )
    return _checked({KEY: json.loads(metadata[KEY]), "state_dict": tensors}, path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that it may hold.

    Raises:
        CheckpointError: There is no such file, it is damaged, or vfm did not write it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {path}. Training writes best.ckpt and last.ckpt into the "
            "'checkpoints' folder of its run."
        )
    try:
        content = read_plain(path)
    except UnreadableFileError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint: {error}\n"
            "It may be cut short or of another kind. Copy it again, or give another .ckpt file."
        ) from error
    if not isinstance(content, Mapping) or KEY not in content:
        raise CheckpointError(
            f"{path} was not written by vfm: it has no entry '{KEY}'. "
            "Give a .ckpt of a vfm training run; bare weights go to --model.weights instead."
        )
    return _checked(dict(content), path)


def _checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    found = content[KEY]["format"]
    if found > FORMAT:
        raise CheckpointError(
            f"{path} has format {found}; this vfm reads up to {FORMAT}. Upgrade vfm."
        )
    content[KEY] = update_class_paths(content[KEY])
    return content


def require_same(name: str, stored: Any, own: Any, *, remedy: str) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        CheckpointError: What is stored is not the task's own.
    """
    if stored != own:
        raise CheckpointError(
            f"The checkpoint's {name} is {stored!r}, this task's is {own!r}. "
            f"Give --model.{name} {remedy} with its arguments, or another checkpoint."
        )


def require_same_labels(found: tuple[str, ...], own: tuple[str, ...], where: str) -> None:
    """Refuse data or a checkpoint with other labels than the model's.

    Raises:
        CheckpointError: They differ.
    """
    if found == own:
        return
    more, fewer = sorted(set(found) - set(own)), sorted(set(own) - set(found))
    raise CheckpointError(
        f"The labels of {where} are not those of the model: {len(found)} against {len(own)}; "
        f"only there: {more[:5]}, only in the model: {fewer[:5]}. "
        "Resume with the data it was trained on; to learn other labels, start a new task from these weights "
        "(--model.weights)."
    )
