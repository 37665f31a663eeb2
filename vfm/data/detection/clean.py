"""Checks what annotation files say: boxes inside of their images, images that are there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vfm.data.detection.annotation import (
    AnnotatedImage,
    Annotation,
    Box,
    BoxError,
    read_upright_size,
)

_MAX_ABSENT = 0.01
_MAX_LEAVING = 0.2
# Tools round; a box is said to leave its image when it does so by more.
_ROUNDING = 1.5
_LEAST_SIDE = 1.0


class Fix(NamedTuple):
    """A box that was not taken as it stands."""

    image: str
    label: str
    box: str
    done: str
    """`clipped`, or `dropped` with the reason."""


def present(scenes: Sequence[AnnotatedImage], source: Path) -> list[str]:
    """Names of the images that are not there, so few that the rest may go on.

    Args:
        scenes: Of all splits.
        source: What the user named.

    Raises:
        BoxError: More than one in a hundred is missing.
    """
    folders = {scene.path.parent for scene in scenes}
    there = {
        os.path.join(folder, name)  # noqa: PTH118 - a Path for each file would take most of the time
        for folder in folders
        if folder.is_dir()
        for name in os.listdir(folder)  # noqa: PTH208
    }
    absent = [scene for scene in scenes if os.fspath(scene.path) not in there]
    if len(absent) > _MAX_ABSENT * len(scenes):
        raise BoxError(
            f"{len(absent)} of the {len(scenes)} images that the annotations of {source} name are not there, such as "
            f"{absent[0].path} ({absent[0].where}). Put them there, or give the folder that holds images and "
            "annotations."
        )
    return [scene.name for scene in absent]


def checked(
    scene: AnnotatedImage, numbers: dict[str, int], fixes: list[Fix]
) -> tuple[Annotation, tuple[int, ...]]:
    """The boxes of one image, clipped to it, and their classes.

    Args:
        scene: As it was read.
        numbers: Of each class name.
        fixes: Gets what was changed.

    Raises:
        BoxError: A number is none, or a class has no name in the list.
    """
    size = scene.size or read_upright_size(scene.path)
    kept: list[tuple[float, ...]] = []
    ignored: list[bool] = []
    labels: list[int] = []
    for box in scene.boxes:
        if not np.isfinite(box[:4]).all():
            raise BoxError(
                f"{scene.where}: the box of a '{box.label}' is {_text(box)}. A coordinate is missing; mend the file."
            )
        if box.label not in numbers:
            raise BoxError(
                f"{scene.where}: there is no class '{box.label}'. Classes: {', '.join(list(numbers)[:10])}."
            )
        clipped = _clipped(box, size)
        reason = _reason(box, clipped, size)
        if reason:
            fixes.append(Fix(scene.name, box.label, _text(box), reason))
        if not reason.startswith("dropped"):
            kept.append(clipped)
            ignored.append(box.ignored)
            labels.append(numbers[box.label])
    corners = np.array(kept, np.float32).reshape(-1, 4)
    return Annotation(corners, np.array(ignored, bool), size or (0, 0)), tuple(labels)


def require_inside(scenes: Iterable[AnnotatedImage], source: Path) -> None:
    """Refuse boxes whose numbers seem to mean something else: too many of them leave their images.

    Raises:
        BoxError: With an example.
    """
    number = leaving = corner_like = 0
    example = ""
    for scene in scenes:
        if scene.size is None:
            continue
        for box in scene.boxes:
            number += 1
            if _leaves(box, scene.size):
                leaving += 1
                example = (
                    example
                    or f"{_text(box)} in {scene.where}, {scene.size[1]} x {scene.size[0]} pixels"
                )
                # Read as left, top, width, height, the corners of a box reach to the sum.
                given = Box(
                    box.left, box.top, box.right - box.left, box.bottom - box.top, box.label
                )
                corner_like += given.right > given.left and not _leaves(given, scene.size)
    if leaving > _MAX_LEAVING * number:
        hint = (
            "Look whether the boxes belong to these images, and in which order their numbers stand."
        )
        if corner_like == leaving:
            hint = (
                "As left, top, right and bottom they would fit, but COCO has left, top, width and height: set "
                "--data.box_format xyxy, or convert them."
            )
        raise BoxError(
            f"{leaving} of the {number} boxes of {source} leave their image, such as {example}. {hint}"
        )


def _clipped(box: Box, size: tuple[int, int] | None) -> tuple[float, float, float, float]:
    if size is None:
        return box.left, box.top, box.right, box.bottom
    height, width = size
    return (
        min(max(box.left, 0.0), width),
        min(max(box.top, 0.0), height),
        min(max(box.right, 0.0), width),
        min(max(box.bottom, 0.0), height),
    )


def _reason(
    box: Box, clipped: tuple[float, float, float, float], size: tuple[int, int] | None
) -> str:
    left, top, right, bottom = clipped
    if min(box.right - box.left, box.bottom - box.top) < _LEAST_SIDE:
        return "dropped: less than a pixel wide or high"
    if min(right - left, bottom - top) < _LEAST_SIDE:
        return "dropped: outside of the image"
    return "clipped" if size is not None and _leaves(box, size) else ""


def _leaves(box: Box, size: tuple[int, int]) -> bool:
    height, width = size
    return (
        min(box.left, box.top) < -_ROUNDING
        or box.right > width + _ROUNDING
        or box.bottom > height + _ROUNDING
    )


def _text(box: Box) -> str:
    return ", ".join(f"{value:g}" for value in box[:4])
