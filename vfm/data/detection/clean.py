"""Cleaning of annotations: boxes clipped to their images, missing images counted, meaningless numbers refused."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vfm.data.detection.annotation import AnnotatedImage, Annotation, Box, BoxError
from vfm.data.layouts import list_files_beside

_MAX_ABSENT = 0.01
_MAX_LEAVING = 0.2
# Tools round; a box is said to leave its image when it does so by more.
_ROUNDING = 1.5
_LEAST_SIDE = 1.0
# Tools round fractions too.
_MOST_FRACTION = 1.01
THIN = "dropped: less than a pixel wide or high"


class Fix(NamedTuple):
    """A box that was not taken as it stands."""

    image: str
    label: str
    box: str
    done: str
    """`clipped`, `corners put in order`, or `dropped` with the reason."""


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
    size = image.size
    boxes: list[Box] = []
    seen: set[tuple[float | str, ...]] = set()
    for stated in image.boxes:
        if not np.isfinite(stated[:4]).all():
            raise BoxError(
                f"{image.where}: the box of a '{stated.label}' is {_format(stated)}. A coordinate is missing; mend the "
                "file."
            )
        if stated.label not in numbers:
            raise BoxError(
                f"{image.where}: there is no class '{stated.label}'. Classes: {', '.join(list(numbers)[:10])}."
            )
        box = _order_corners(stated)
        clipped = _clip(box, size)
        outcome = "corners put in order" if box != stated else ""
        if _is_thin(box):
            outcome = THIN
        elif _is_thin(clipped):
            outcome = "dropped: outside of the image"
        elif box[:-1] in seen:
            outcome = "dropped: the same box again"
        elif _has_outside(box, size):
            outcome = "clipped"
        if outcome:
            fixes.append(Fix(image.name, stated.label, _format(stated), outcome))
        if not outcome.startswith("dropped"):
            boxes.append(clipped)
        seen.add(box[:-1])
    corners = np.array([box[:4] for box in boxes], np.float32).reshape(-1, 4)
    ignored = np.array([box.ignored for box in boxes], bool)
    labels = tuple(numbers[box.label] for box in boxes)
    sides = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    areas = np.where([box.area > 0 for box in boxes], [box.area for box in boxes], sides)
    areas = areas.astype(np.float32)
    return Annotation(corners, ignored, size or (0, 0), areas=areas), labels


def recognize_fractions(
    splits: Mapping[str, list[AnnotatedImage]], source: Path
) -> tuple[dict[str, list[AnnotatedImage]], list[str]]:
    """Take the boxes of a split for fractions of their images where no number of them can be of pixels.

    Returns:
        The splits, and a note on each that is of fractions.
    """
    marked, notes = dict(splits), []
    for split, images in splits.items():
        boxes = [_order_corners(b) for i in images for b in i.boxes if not i.fractions]
        values = [value for box in boxes for value in box[:4]]
        if not boxes or not all(1 - _MOST_FRACTION <= v <= _MOST_FRACTION for v in values):
            continue
        marked[split] = [image._replace(fractions=True) for image in images]
        first = next(image for image in images if image.boxes)
        notes.append(
            f"All {len(boxes)} boxes of {split or 'the images'} of {source} lie within 0 and 1, such as "
            f"{_format(first.boxes[0])} in {first.name}: they are taken for fractions of their images."
        )
    return marked, notes


def require_inside(images: Iterable[AnnotatedImage], source: Path) -> None:
    """Refuse boxes whose numbers seem to mean something else: too many leave their images, or have no area.

    Raises:
        BoxError: With an example.
    """
    sized = [image for image in images if image.size is not None]
    pairs = [(box, image) for image in sized for box in image.boxes]
    problems = {
        "leave their image": [p for p in pairs if _has_outside(_order_corners(p[0]), p[1].size)],
        "are less than a pixel wide or high": [p for p in pairs if _is_thin(_order_corners(p[0]))],
        "end before they begin": [p for p in pairs if _order_corners(p[0]) != p[0]],
    }
    for problem, cases in problems.items():
        if len(cases) <= _MAX_LEAVING * len(pairs):
            continue
        hint = (
            "Look whether the boxes belong to these images, and in which order their numbers stand."
        )
        if problem == "leave their image" and all(_is_corner_like(b, i.size) for b, i in cases):
            hint = (
                "As left, top, right and bottom they would fit, but COCO has left, top, width and height: set "
                "--data.box_format xyxy, or convert them."
            )
        box, image = cases[0]
        height, width = image.size or (0, 0)
        raise BoxError(
            f"{len(cases)} of the {len(pairs)} boxes of {source} {problem}, such as {_format(box)} in "
            f"{image.where}, {width} x {height} pixels. {hint}"
        )


def _order_corners(box: Box) -> Box:
    """A box that was drawn from whichever corner, from its upper left one."""
    if box.left <= box.right and box.top <= box.bottom:
        return box
    (left, right), (top, bottom) = sorted((box.left, box.right)), sorted((box.top, box.bottom))
    return box._replace(left=left, top=top, right=right, bottom=bottom)


def _clip(box: Box, size: tuple[int, int] | None) -> Box:
    if size is None:
        return box
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
