"""Checkpoints that do not fit: other models, labels or data than a task goes on with."""

from __future__ import annotations

from typing import Any

from vfm.training.checkpoint_file import CheckpointError

OTHER_DATA = (
    "The images, labels or splits are not those that the checkpoint was trained on: training goes on with the new "
    "ones, and its figures are not comparable with the earlier ones."
)
"""Said when a training goes on with other data."""


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
