"""Finding faces with five landmarks: the three networks of MTCNN on ONNX Runtime."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm_runtime.bundle.providers import open_session
from vfm_runtime.deepfake.faces.face import DETECTORS, Face, FaceDetector
from vfm_runtime.errors import OptionError
from vfm_runtime.media.image import Pixels

_Array: TypeAlias = NDArray[np.float32]

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the three ONNX files and of the notice that says where they come from."""

# The proposal network looks at squares of 12 pixels, two pixels apart.
_CELL, _STRIDE = 12, 2
# From one level of the pyramid to the next: half the area.
_FACTOR = math.sqrt(0.5)
# Least scores of the three stages (Zhang et al., 2016).
_PROPOSED, _REFINED, _LANDED = 0.6, 0.7, 0.7
# Most candidates that the second network looks at: bounds the time of a textured image.
_MOST = 400
_BATCH = 128


class Mtcnn:
    """Joint detection of faces and five landmarks by cascaded networks.

    Zhang et al., IEEE Signal Processing Letters 2016. A large image is looked at in smaller size,
    so the time depends little on the resolution; faces below `min_face` there are not found, and
    profiles seldom are.
    """

    def __init__(
        self,
        *,
        num_threads: int | None = 1,
        device: str = "cpu",
        max_side: int = 640,
        min_face: float = 24.0,
    ) -> None:
        """Load the networks.

        Args:
            num_threads: Threads of one run on the CPU; None for one a core. The networks are so small that several
                threads wait for each other longer than they work.
            device: `cpu`, `cuda` or `auto`; the networks are small, so the CPU is fast.
            max_side: Longest side in pixels of the image that is looked at.
            min_face: Side of the smallest face in pixels of that image.

        Raises:
            ValueError: A size is below what the first network sees, 12 pixels.
        """
        if max_side < _CELL or min_face < _CELL:
            raise OptionError(
                f"max_side is {max_side} and min_face {min_face} pixels. Give at least {_CELL}: "
                "the first network sees no smaller face."
            )
        self.max_side = max_side
        self.min_face = min_face
        self._nets = [
            open_session(WEIGHTS / f"{name}.onnx", device, num_threads=num_threads)
            for name in ("pnet", "rnet", "onet")
        ]

    def detect(self, image: Pixels) -> list[Face]:
        """Return the faces of an image, surest first.

        Args:
            image: Uint8 RGB, [height, width, 3].
        """
        height, width = image.shape[:2]
        small = _shrunk(Image.fromarray(image), self.max_side)
        boxes = self._propose(small)
        boxes = self._refine(small, boxes)
        boxes, landmarks = self._land(small, boxes)
        scale = np.array([width / small.width, height / small.height])
        faces = [
            Face(
                (box[:4] * np.tile(scale, 2)).astype(np.float64),
                float(min(box[4], 1.0)),
                (points * scale).astype(np.float64),
            )
            for box, points in zip(boxes, landmarks, strict=True)
        ]
        return sorted(faces, key=lambda face: -face.score)

    def _propose(self, image: Image.Image) -> _Array:
        """Windows of the pyramid that may hold a face, moved by their regression: [n, 5]."""
        found = [np.zeros((0, 9), np.float32)]
        scale = _CELL / self.min_face
        while min(image.size) * scale >= _CELL:
            size = (math.ceil(image.width * scale), math.ceil(image.height * scale))
            level = image.resize(size, Image.Resampling.BILINEAR)
            pixels = _normalised(np.asarray(level)[None])
            moves, scores = self._run(0, pixels)
            rows, columns = np.nonzero(scores[0, 1] > _PROPOSED)
            places = np.stack([columns, rows, columns, rows], 1).astype(np.float32) * _STRIDE
            places[:, 2:] += _CELL
            stretch = np.array([image.width / size[0], image.height / size[1]], np.float32)
            score = scores[0, 1, rows, columns][:, None]
            move = moves[0, :, rows, columns].reshape(-1, 4)
            windows = np.concatenate([places * np.tile(stretch, 2), score, move], 1)
            found.append(windows[suppress(windows, 0.5)])
            scale *= _FACTOR
        windows = np.concatenate(found)
        windows = windows[suppress(windows, 0.7)][:_MOST]
        return _moved(windows[:, :5], windows[:, 5:])

    def _refine(self, image: Image.Image, boxes: _Array) -> _Array:
        boxes = _squared(boxes)
        moves, scores = self._look(1, image, boxes, 24)
        boxes[:, 4] = scores[:, 1]
        sure = boxes[:, 4] > _REFINED
        boxes, moves = boxes[sure], moves[sure]
        kept = suppress(boxes, 0.7)
        return _moved(boxes[kept], moves[kept])

    def _land(self, image: Image.Image, boxes: _Array) -> tuple[_Array, _Array]:
        """Final boxes, [n, 5], and landmarks, [n, 5, 2]."""
        boxes = _squared(boxes)
        points, moves, scores = self._look(2, image, boxes, 48)
        boxes[:, 4] = scores[:, 1]
        sure = boxes[:, 4] > _LANDED
        boxes, moves, points = boxes[sure], moves[sure], points[sure]
        # Five x, then five y, as shares of the square.
        places = points.reshape(-1, 2, 5).transpose(0, 2, 1)
        landmarks = boxes[:, None, :2] + places * (boxes[:, None, 2:4] - boxes[:, None, :2])
        boxes = _moved(boxes, moves)
        kept = suppress(boxes, 0.7, of_smaller=True)
        return boxes[kept], landmarks[kept]

    def _look(self, net: int, image: Image.Image, boxes: _Array, side: int) -> list[_Array]:
        # One black square stands in for no boxes: the networks refuse an empty batch.
        cuts = np.zeros((max(len(boxes), 1), side, side, 3), np.uint8)
        for number, box in enumerate(boxes[:, :4].astype(int).tolist()):
            # Pillow's crop fills with black what lies outside, as in the networks' training.
            cut = image.crop(tuple(box)).resize((side, side), Image.Resampling.BILINEAR)
            cuts[number] = np.asarray(cut)
        starts = range(0, len(cuts), _BATCH)
        parts = [self._run(net, _normalised(cuts[start : start + _BATCH])) for start in starts]
        return [np.concatenate(outputs)[: len(boxes)] for outputs in zip(*parts, strict=True)]

    def _run(self, net: int, pixels: _Array) -> list[_Array]:
        answers: list[Any] = self._nets[net].run(None, {"input": pixels})
        return answers


def load_detector(name: str) -> FaceDetector:
    """Build the detector that a crop specification names.

    Args:
        name: `CropSpec.detector`.

    Raises:
        ValueError: There is no such detector, or it needs a file of landmarks.
    """
    if name == "mtcnn":
        return Mtcnn()
    if name == "precomputed":
        raise OptionError(
            "Precomputed faces come from a file of boxes and landmarks. Build "
            "Precomputed(path).detector(name) for each image, or take the detector 'mtcnn'."
        )
    raise OptionError(f"There is no face detector {name!r}. Detectors: {', '.join(DETECTORS)}.")


def suppress(boxes: _Array, overlap: float, *, of_smaller: bool = False) -> NDArray[np.int64]:
    """Return the places of the boxes that no surer box covers, surest first.

    Args:
        boxes: [n, 5 or more], left, top, right, bottom, score.
        overlap: Greatest share of the union that two kept boxes have in common.
        of_smaller: The share is of the smaller box instead: a face inside a face is one face.
    """
    left, top, right, bottom, score = boxes[:, :5].T
    areas = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    order = np.argsort(-score, kind="stable")
    kept = []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        width = np.minimum(right[first], right[rest]) - np.maximum(left[first], left[rest])
        height = np.minimum(bottom[first], bottom[rest]) - np.maximum(top[first], top[rest])
        common = np.maximum(width, 0) * np.maximum(height, 0)
        smaller = np.minimum(areas[first], areas[rest])
        whole = smaller if of_smaller else areas[first] + areas[rest] - common
        order = rest[common <= overlap * whole]
    return np.array(kept, np.int64)


def _shrunk(image: Image.Image, max_side: int) -> Image.Image:
    scale = max_side / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # A gap of 2 averages whole blocks first, which is several times faster on large frames.
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _normalised(pixels: NDArray[np.uint8]) -> _Array:
    """Pixels as the networks were trained on: [n, 3, h, w], about -1 to 1."""
    centred = (pixels.astype(np.float32) - 127.5) * (1 / 128)
    return np.ascontiguousarray(centred.transpose(0, 3, 1, 2))


def _moved(boxes: _Array, moves: _Array) -> _Array:
    sides = np.tile(boxes[:, 2:4] - boxes[:, :2], 2)
    return np.concatenate([boxes[:, :4] + moves * sides, boxes[:, 4:5]], 1)


def _squared(boxes: _Array) -> _Array:
    """Squares about the boxes on whole pixels; what has no area or flew away is dropped."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    boxes = boxes[(width > 1) & (height > 1)]
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2
    half = (boxes[:, 2:4] - boxes[:, :2]).max(1, keepdims=True) / 2
    low = np.round(centre - half)
    side = np.maximum(np.round(2 * half), 1)
    return np.concatenate([low, low + side, boxes[:, 4:5]], 1).astype(np.float32)
