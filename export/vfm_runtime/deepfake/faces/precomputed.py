"""Precomputed faces: boxes and landmarks from a JSON file or from NumPy files, in place of a detector."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm_runtime.deepfake.faces.face import Face
from vfm_runtime.errors import DataError, suggest
from vfm_runtime.media.image import Pixels

POINTS = (5, 68, 81)
"""Numbers of landmarks that are understood; 68 and 81 are dlib's."""

_FORMAT = 'Give {"image.png": [{"landmarks": [[x, y], ...], "box": [...], "score": ...}]}.'


@dataclass(frozen=True)
class ListedFaces:
    """A detector of one image, whose faces are listed already."""

    faces: Sequence[Face]
    """The faces of that image."""

    def detect(self, image: Pixels) -> list[Face]:
        """Return the faces, surest first; the pixels are not looked at."""
        return sorted(self.faces, key=lambda face: -face.score)


class PrecomputedFaces:
    """Faces by image name, from a JSON file or a folder of NumPy files.

    The JSON file maps names to lists of faces: `landmarks` of 5, 68 or 81 points in pixels, and
    optionally `box` (left, top, right, bottom) and `score`. In a folder, `name.npy` holds the
    landmarks of the one face of the image `name`, whatever the suffix of the image is.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        """Open the file or the folder.

        Raises:
            ValueError: It is neither, or it does not hold faces.
        """
        self.path = Path(path)
        self._faces: dict[str, list[Face]] | None = None
        if self.path.is_file() and self.path.suffix.lower() == ".json":
            self._faces = _read_faces(self.path)
        elif not self.path.is_dir():
            raise DataError(
                f"{self.path} is neither a JSON file nor a folder of .npy files. "
                "Check the path of the precomputed faces."
            )

    def get_faces(self, name: str) -> list[Face]:
        """Return the faces of an image; none where the file says that there are none.

        Args:
            name: Name of the image as the file has it, or its path below the folder.

        Raises:
            ValueError: Nothing is known about that image.
        """
        if self._faces is None:
            path = self.path / Path(name).with_suffix(".npy")
            return [build_face(read_landmarks(path))]
        if name not in self._faces:
            hint = suggest(name, self._faces)
            raise DataError(
                f"{self.path} has no image '{name}'.{hint} It knows {len(self._faces)} images; "
                "an image without a face has an empty list."
            )
        return self._faces[name]

    def get_detector(self, name: str) -> ListedFaces:
        """Return a face detector for the image of a name, as `get_faces` takes it."""
        return ListedFaces(self.get_faces(name))


def read_landmarks(path: str | PathLike[str]) -> NDArray[np.float64]:
    """Read the landmarks of one face, [5, 2], from a NumPy file of [5, 2], [68, 2] or [81, 2] numbers.

    Raises:
        ValueError: The file is missing or holds something else.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"The landmarks {path} cannot be read ({error}). Give a NumPy file of [5, 2], [68, 2] "
            "or [81, 2] numbers."
        ) from error
    return select_five_points(values, str(path))


def select_five_points(points: ArrayLike, name: str = "The landmarks") -> NDArray[np.float64]:
    """Return eyes, nose and corners of the mouth, [5, 2], viewer's left first.

    Args:
        points: Landmarks, [5, 2], or dlib's [68, 2] or [81, 2].
        name: What an error calls the landmarks.

    Raises:
        ValueError: Their number is another, one is not finite, or left and right are swapped.
    """
    values = np.asarray(points)
    if values.ndim != 2 or values.shape[1] != 2 or len(values) not in POINTS:
        raise DataError(
            f"{name} have the shape {list(values.shape)}. Give [N, 2] with N of "
            f"{', '.join(map(str, POINTS))}."
        )
    five = values.astype(np.float64)
    if not np.isfinite(five).all():
        raise DataError(f"{name} hold NaN or infinite numbers. Detect the face anew.")
    if len(five) != 5:
        eyes = five[36:42].mean(0), five[42:48].mean(0)
        five = np.stack([*eyes, five[30], five[48], five[54]])
    # An alignment would turn such a face upside down, and say nothing.
    left, right = five[[0, 3]].mean(0), five[[1, 4]].mean(0)
    down = five[3:].mean(0) - five[:2].mean(0)
    across = right - left
    if across[0] * down[1] - across[1] * down[0] < 0:
        raise DataError(
            f"{name} have left and right swapped. The order is: the eye at the viewer's left, the "
            "other eye, nose, the corner of the mouth at the viewer's left, the other corner."
        )
    return five


def build_face(landmarks: NDArray[np.float64], score: float = 1.0) -> Face:
    """Return a face with a box about its landmarks, [5, 2], as large as a detector would draw it."""
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    # From MTCNN's boxes: eyes and mouth 0.36 of the height apart, the center a third of the way
    # from eyes to mouth, and 0.8 as wide as high.
    center = (2 * eyes + mouth) / 3
    height = max(float(np.linalg.norm(mouth - eyes)) / 0.36, 1.0)
    half = np.array([0.4 * height, 0.5 * height])
    return Face(np.concatenate([center - half, center + half]), score, landmarks)


def _read_faces(path: Path) -> dict[str, list[Face]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a JSON file ({error}). {_FORMAT}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__}. {_FORMAT}")
    faces = {}
    for name, rows in values.items():
        if not isinstance(rows, list):
            raise DataError(f"{path}: {name} has no list of faces. {_FORMAT}")
        faces[name] = [_read_face(row, f"{path}: {name}") for row in rows]
    return faces


def _read_face(value: Any, name: str) -> Face:
    if not isinstance(value, dict) or "landmarks" not in value:
        raise DataError(f"{name} has a face without landmarks. {_FORMAT}")
    face = build_face(select_five_points(value["landmarks"], name), value.get("score", 1.0))
    if not isinstance(face.score, int | float) or not 0 <= face.score <= 1:
        raise DataError(f"{name} has the score {face.score!r}. Give a number from 0 to 1.")
    if "box" not in value:
        return face
    box = np.asarray(value["box"], np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
        raise DataError(f"{name} has the box {value['box']}. Give left, top, right, bottom.")
    return Face(box, float(face.score), face.landmarks)
