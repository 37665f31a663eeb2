"""Face crops: aligned by landmarks, declared, or tiles of the whole image; the same in training and production."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vfm_runtime.deepfake.faces.face import DETECTORS, Face, FaceDetector
from vfm_runtime.deepfake.faces.geometry import fit_similarity, warp
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.media.image import Pixels
from vfm_runtime.validation import is_number, is_whole

Source = Literal["faces", "cropped", "native"]
"""Where pixels come from: detected faces, images that are declared to be face crops already, or
squares of the whole image at its own resolution."""

Policy = Literal["largest", "all"]
"""Which face of a frame counts: the largest, or all of at least half the largest one's area."""

MAX_TILES = 9
"""Most tiles of one image: the center, the corners and the middles of the edges."""

TEMPLATE: Final[NDArray[np.float64]] = np.array(
    [(0.34, 0.46), (0.66, 0.46), (0.50, 0.64), (0.37, 0.82), (0.63, 0.82)]
)
"""[5, 2], where the eyes, the nose and the corners of the mouth lie in the unit square of a crop
at margin 1: the viewer's left first. Chin and forehead then touch the edges."""

TEMPLATE.setflags(write=False)

_LEAST_FRACTION = 0.5


@dataclass(frozen=True, kw_only=True)
class CropSpec:
    """How crops are made; part of the model, since it answers for no other crop."""

    source: Source = "faces"
    """Where pixels come from: `faces`, `cropped` or `native`."""

    size: int = 256
    """Side of the square crop in pixels, 16 to 2048."""

    margin: float = 1.3
    """Side of the crop over that of the tight crop of the five-point template, 0.5 to 4."""

    policy: Policy = "largest"
    """Which face of a frame counts: `largest` or `all`."""

    detector: str = "mtcnn"
    """What finds faces: `mtcnn` or `precomputed`."""

    min_score: float = 0.9
    """Least score of a detected face, 0 to 1."""

    tiles: int = 5
    """How many squares `native` cuts out, 1 to 9: the center, the corners, the edges' middles."""

    def __post_init__(self) -> None:
        for name in _CHOICES:
            _check_choice(name, getattr(self, name))
        for name, (low, high) in _RANGES.items():
            value, whole = getattr(self, name), name in ("size", "tiles")
            if not (is_whole if whole else is_number)(value) or not low <= value <= high:
                kind = "a whole number" if whole else "a number"
                raise OptionError(
                    f"{name} of the crop is {value!r}. Give {kind} from {low} to {high}."
                )
        # So that a specification read from JSON, where 1.0 may have become 1, is the same one.
        object.__setattr__(self, "margin", float(self.margin))
        object.__setattr__(self, "min_score", float(self.min_score))

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a specification from `to_dict`; a crop must not depend on what was left out.

        Raises:
            ValueError: A field is missing, unknown or out of its range.
        """
        if not isinstance(values, Mapping):
            raise DataError(
                f"A crop specification is a mapping, not {type(values).__name__}. "
                "Give what CropSpec.to_dict wrote."
            )
        names = [field.name for field in fields(cls)]
        unknown = [str(name) for name in values if name not in names]
        missing = [name for name in names if name not in values]
        if unknown or missing:
            what = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
            raise DataError(
                f"The crop specification has the wrong fields ({what}). It needs exactly: "
                f"{', '.join(names)}. Extract the faces anew, or export the bundle anew."
            )
        return cls(**values)


_CHOICES = {"source": get_args(Source), "policy": get_args(Policy), "detector": DETECTORS}
_RANGES = {"size": (16, 2048), "margin": (0.5, 4), "min_score": (0, 1), "tiles": (1, MAX_TILES)}


def _check_choice(name: str, value: object) -> None:
    if value not in _CHOICES[name]:
        raise OptionError(f"{name} of the crop is {value!r}. Choices: {', '.join(_CHOICES[name])}.")


class Crop(NamedTuple):
    """A square cut out of an image."""

    pixels: Pixels
    """Uint8 RGB, [size, size, 3]."""

    matrix: NDArray[np.float64]
    """[2, 3], the affine map from pixels of the image to pixels of the crop."""

    face: Face | None
    """The face in the image; None where no face was looked for."""


def scale_template(spec: CropSpec) -> NDArray[np.float64]:
    """Return where the five points lie in a crop, [5, 2] in pixels."""
    return ((TEMPLATE - 0.5) / spec.margin + 0.5) * spec.size


def crop_face(image: Pixels, landmarks: ArrayLike, spec: CropSpec) -> Crop:
    """Cut out a face so that its five points lie where `scale_template` says; numpy and Pillow alone.

    Args:
        image: Uint8 RGB, [height, width, 3].
        landmarks: [5, 2] in pixels of the image, viewer's left first.
        spec: Size and margin of the crop.

    Returns:
        The crop; its `face` holds the landmarks, their bounding box and the score 1.

    Raises:
        ValueError: The landmarks are no [5, 2], not finite, or coincide.
    """
    points = np.asarray(landmarks, np.float64)
    matrix = fit_similarity(points, scale_template(spec))
    box = np.concatenate([points.min(0), points.max(0)])
    return Crop(warp(image, matrix, spec.size), matrix, Face(box, 1.0, points))


def crop_whole(image: Pixels, spec: CropSpec) -> Crop:
    """Take an image, uint8 RGB [height, width, 3], that is declared to be a face crop: its central square, resized."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = image[top : top + side, left : left + side]
    scale = spec.size / side
    matrix = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]], np.float64)
    if side != spec.size:
        size = (spec.size, spec.size)
        square = np.array(
            Image.fromarray(np.ascontiguousarray(square)).resize(size, Image.Resampling.BICUBIC)
        )
    return Crop(np.array(square), matrix, None)


# Where tiles lie between the first position and the last, in x and y: center, corners, edges.
_POSITIONS = (
    *((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)),
    *((0.5, 0.0), (0.0, 0.5), (1.0, 0.5), (0.5, 1.0)),
)


def cut_tiles(image: Pixels, size: int, num: int) -> list[Crop]:
    """Cut squares out of an image without resizing, which would erase a generator's traces.

    An image smaller than the square is mirrored at its edges until it fills it.

    Args:
        image: Uint8 RGB, [height, width, 3].
        size: Side of a square in pixels.
        num: How many at most, 1 to 9; fewer where squares would be the same.

    Raises:
        ValueError: `num` or `size` is out of range.
    """
    if not 1 <= num <= MAX_TILES or size < 1:
        raise OptionError(
            f"{num} tiles of {size} pixels cannot be cut. Give 1 to {MAX_TILES} tiles of at least "
            "1 pixel."
        )
    height, width = image.shape[:2]
    lack_x, lack_y = max(size - width, 0), max(size - height, 0)
    before_x, before_y = lack_x // 2, lack_y // 2
    pads = ((before_y, lack_y - before_y), (before_x, lack_x - before_x), (0, 0))
    padded = np.pad(image, pads, mode="reflect") if lack_x or lack_y else image
    room_x, room_y = padded.shape[1] - size, padded.shape[0] - size
    corners = dict.fromkeys((int(room_x * x), int(room_y * y)) for x, y in _POSITIONS[:num])
    tiles = []
    for x, y in corners:
        matrix = np.array([[1, 0, before_x - x], [0, 1, before_y - y]], np.float64)
        tiles.append(Crop(padded[y : y + size, x : x + size].copy(), matrix, None))
    return tiles


def choose_faces(faces: Sequence[Face], policy: Policy) -> list[Face]:
    """Return the faces of a frame that count, largest first; none where there are none.

    Args:
        faces: Detected faces, in any order.
        policy: `largest`, or `all` for those of at least half the largest one's area.

    Raises:
        ValueError: There is no such policy.
    """
    _check_choice("policy", policy)
    ordered = sorted(faces, key=lambda face: face.area, reverse=True)
    if policy == "largest":
        return ordered[:1]
    return [face for face in ordered if face.area >= _LEAST_FRACTION * ordered[0].area]


def choose_forged_face(faces: Sequence[Face], mask: NDArray[Any]) -> Face:
    """Return the face that covers most of a forgery mask; the largest need not be the forged one.

    Args:
        faces: One or more faces of the image.
        mask: [height, width] of the image, above 0 where it was forged.

    Returns:
        The largest face where the mask is empty or meets no face.

    Raises:
        ValueError: There are no faces.
    """
    if not faces:
        raise DataError("There is no face to choose from. Leave the frame out.")

    def measure_overlap(face: Face) -> tuple[int, float]:
        left, top = np.floor(np.maximum(face.box[:2], 0)).astype(int)
        right, bottom = np.ceil(np.maximum(face.box[2:], 0)).astype(int)
        return int((np.asarray(mask)[top:bottom, left:right] > 0).sum()), face.area

    return max(faces, key=measure_overlap)


def find_faces(image: Pixels, spec: CropSpec, detector: FaceDetector) -> list[Face]:
    """Return the faces of an image, uint8 RGB [height, width, 3], that count by a specification, largest first."""
    sure = [face for face in detector.detect(image) if face.score >= spec.min_score]
    return choose_faces(sure, spec.policy)


def cut_crops(image: Pixels, spec: CropSpec, detector: FaceDetector | None = None) -> list[Crop]:
    """Make the crops of an image by a specification: the one way from an image to a model's input.

    Args:
        image: Uint8 RGB, [height, width, 3].
        spec: Specification that says where crops come from.
        detector: Face detector; needed where `spec.source` is `faces`.

    Returns:
        One crop a face that counts (none without a face), one for a declared crop, or the tiles.

    Raises:
        ValueError: Faces are asked for without a detector.
    """
    if spec.source == "cropped":
        return [crop_whole(image, spec)]
    if spec.source == "native":
        return cut_tiles(image, spec.size, spec.tiles)
    if detector is None:
        raise OptionError(
            "Crops of faces need a face detector. Give load_detector(spec.detector), or declare "
            "the images to be crops already with source='cropped'."
        )
    faces = find_faces(image, spec, detector)
    return [crop_face(image, face.landmarks, spec)._replace(face=face) for face in faces]
