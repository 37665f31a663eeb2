"""Cleaning of annotations: boxes clipped to their images, missing images counted, meaningless numbers refused."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vfm.data.detection.annotation import AnnotatedImage, Annotation, Box, BoxError, read_image_size
from vfm.data.layouts import list_files_beside

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


def require_one_split(
    splits: Mapping[str, list[AnnotatedImage]], source: Path
) -> tuple[dict[str, list[AnnotatedImage]], list[str]]:
    """Refuse images that are in two splits; a test that repeats the whole val is left out instead.

    Returns:
        The splits, and a note where the test was left out.

    Raises:
        BoxError: With an example.
    """
    notes: list[str] = []
    splits = dict(splits)
    names = {split: {image.name for image in images} for split, images in splits.items()}
    if names.get("test") and names["test"] == names.get("val"):
        del splits["test"], names["test"]
        notes.append(
            f"The test images of {source} are those of val, so there is no test split: a model chosen by val is not "
            "tested by it."
        )
    for first, second in combinations(names, 2):
        both = sorted(names[first] & names[second])
        if both:
            number = "All" if len(both) == len(names[second]) else f"{len(both)} of the"
            raise BoxError(
                f"{number} {len(names[second])} images of {second} are in {first} too, such as '{both[0]}': what is "
                f"trained on would be tested on. Give each image of {source} one split; or take {second} out of its "
                "files, and val is drawn from train."
            )
    return splits, notes


def find_absent(images: Sequence[AnnotatedImage], source: Path) -> list[str]:
    """Names of the images that are not there, so few that the rest may go on.

    Raises:
        BoxError: More than one in a hundred is missing.
    """
    files = list_files_beside(image.path.as_posix() for image in images)
    absent = [image for image in images if image.path.as_posix() not in files]
    if len(absent) > _MAX_ABSENT * len(images):
        raise BoxError(
            f"{len(absent)} of the {len(images)} images that the annotations of {source} name are not there, such as "
            f"{absent[0].path} ({absent[0].where}). Put them there, or give the folder that holds images and "
            "annotations."
        )
    return [image.name for image in absent]


def check_boxes(
    image: AnnotatedImage, numbers: dict[str, int], fixes: list[Fix]
) -> tuple[Annotation, tuple[int, ...]]:
    """The boxes of one image, clipped to it, and their classes.

    Args:
        image: Image with its boxes as the file states them.
        numbers: Number of each class by its name.
        fixes: List to which each changed box is added.

    Raises:
        BoxError: A number is none, or a class has no name in the list.
    """
    size = image.size or read_image_size(image.path)
    boxes: list[Box] = []
    for box in image.boxes:
        if not np.isfinite(box[:4]).all():
            raise BoxError(
                f"{image.where}: the box of a '{box.label}' is {_format(box)}. A coordinate is missing; mend the file."
            )
        if box.label not in numbers:
            raise BoxError(
                f"{image.where}: there is no class '{box.label}'. Classes: {', '.join(list(numbers)[:10])}."
            )
        clipped = _clip(box, size) if size is not None else box
        outcome = ""
        if _is_thin(box):
            outcome = "dropped: less than a pixel wide or high"
        elif _is_thin(clipped):
            outcome = "dropped: outside of the image"
        elif _has_outside(box, size):
            outcome = "clipped"
        if outcome:
            fixes.append(Fix(image.name, box.label, _format(box), outcome))
        if not outcome.startswith("dropped"):
            boxes.append(clipped)
    corners = np.array([box[:4] for box in boxes], np.float32).reshape(-1, 4)
    ignored = np.array([box.ignored for box in boxes], bool)
    labels = tuple(numbers[box.label] for box in boxes)
    return Annotation(corners, ignored, size or (0, 0)), labels


def require_inside(images: Iterable[AnnotatedImage], source: Path) -> None:
    """Refuse boxes whose numbers seem to mean something else: too many of them leave their images.

    Raises:
        BoxError: With an example.
    """
    sized = [image for image in images if image.size is not None]
    number = sum(len(image.boxes) for image in sized)
    leaving = [
        (box, image) for image in sized for box in image.boxes if _has_outside(box, image.size)
    ]
    if len(leaving) <= _MAX_LEAVING * number:
        return
    hint = "Look whether the boxes belong to these images, and in which order their numbers stand."
    if all(_is_corner_like(box, image.size) for box, image in leaving):
        hint = (
            "As left, top, right and bottom they would fit, but COCO has left, top, width and height: set "
            "--data.box_format xyxy, or convert them."
        )
    box, image = leaving[0]
    height, width = image.size or (0, 0)
    raise BoxError(
        f"{len(leaving)} of the {number} boxes of {source} leave their image, such as {_format(box)} in "
        f"{image.where}, {width} x {height} pixels. {hint}"
    )


def _clip(box: Box, size: tuple[int, int]) -> Box:
    height, width = size
    return box._replace(
        left=min(max(box.left, 0.0), width),
        top=min(max(box.top, 0.0), height),
        right=min(max(box.right, 0.0), width),
        bottom=min(max(box.bottom, 0.0), height),
    )


def _is_thin(box: Box) -> bool:
    return min(box.right - box.left, box.bottom - box.top) < _LEAST_SIDE


def _has_outside(box: Box, size: tuple[int, int] | None) -> bool:
    """Whether a box leaves an image of this height and width by more than tools round."""
    return size is not None and (
        min(box.left, box.top) < -_ROUNDING
        or box.bottom > size[0] + _ROUNDING
        or box.right > size[1] + _ROUNDING
    )


def _is_corner_like(box: Box, size: tuple[int, int] | None) -> bool:
    # Read as left, top, width, height, the corners of a box reach to the sum.
    read = box._replace(right=box.right - box.left, bottom=box.bottom - box.top)
    return read.right > read.left and not _has_outside(read, size)


def _format(box: Box) -> str:
    return ", ".join(f"{value:g}" for value in box[:4])
