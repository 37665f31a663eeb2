"""MTCNN face detector: boxes and five landmarks by three networks on ONNX Runtime."""

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
# Side of the squares that each network looks at.
_SIDES = (_CELL, 24, 48)


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
        """Return the faces of an image, uint8 RGB [height, width, 3], surest first."""
        height, width = image.shape[:2]
        small = Image.fromarray(image)
        shrink = self.max_side / max(small.size)
        if shrink < 1:
            size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
            # A gap of 2 averages whole blocks first, which is several times faster on large frames.
            small = small.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        boxes, (moves,) = self._filter_boxes(1, small, self._propose(small), _REFINED)
        sure = suppress(boxes, 0.7)
        boxes = _move_boxes(boxes[sure], moves[sure])
        boxes, (points, moves) = self._filter_boxes(2, small, boxes, _LANDED)
        # Five x, then five y, as fractions of the square.
        points = points.reshape(-1, 2, 5).transpose(0, 2, 1)
        landmarks = boxes[:, None, :2] + points * (boxes[:, None, 2:4] - boxes[:, None, :2])
        boxes = _move_boxes(boxes, moves)
        sure = suppress(boxes, 0.7, of_smaller=True)
        scale = np.array([width / small.width, height / small.height])
        faces = [
            Face(
                (box[:4] * np.tile(scale, 2)).astype(np.float64),
                float(min(box[4], 1.0)),
                (points * scale).astype(np.float64),
            )
            for box, points in zip(boxes[sure], landmarks[sure], strict=True)
        ]
        return sorted(faces, key=lambda face: -face.score)

    def _propose(self, image: Image.Image) -> _Array:
        """Windows of the pyramid that may hold a face, moved by their regression: [n, 5]."""
        levels = [np.zeros((0, 9), np.float32)]
        scale = _CELL / self.min_face
        while min(image.size) * scale >= _CELL:
            size = (math.ceil(image.width * scale), math.ceil(image.height * scale))
            level = image.resize(size, Image.Resampling.BILINEAR)
            moves, scores = self._run(0, np.asarray(level)[None])
            rows, columns = np.nonzero(scores[0, 1] > _PROPOSED)
            cells = np.stack([columns, rows, columns, rows], 1).astype(np.float32) * _STRIDE
            cells[:, 2:] += _CELL
            stretch = np.array([image.width / size[0], image.height / size[1]], np.float32)
            score = scores[0, 1, rows, columns][:, None]
            move = moves[0, :, rows, columns].reshape(-1, 4)
            windows = np.concatenate([cells * np.tile(stretch, 2), score, move], 1)
            levels.append(windows[suppress(windows, 0.5)])
            scale *= _FACTOR
        windows = np.concatenate(levels)
        windows = windows[suppress(windows, 0.7)][:_MOST]
        return _move_boxes(windows[:, :5], windows[:, 5:])

    def _filter_boxes(
        self, net: int, image: Image.Image, boxes: _Array, least: float
    ) -> tuple[_Array, list[_Array]]:
        """Squares [n, 5] whose score by a network is above the least, and the other outputs of the network for them."""
        boxes = _square_boxes(boxes)
        side = _SIDES[net]
        # One black square stands in for no boxes: the networks refuse an empty batch.
        cuts = np.zeros((max(len(boxes), 1), side, side, 3), np.uint8)
        for number, box in enumerate(boxes[:, :4].astype(int).tolist()):
            # Pillow's crop fills with black what lies outside, as in the networks' training.
            cut = image.crop(tuple(box)).resize((side, side), Image.Resampling.BILINEAR)
            cuts[number] = np.asarray(cut)
        parts = [
            self._run(net, cuts[start : start + _BATCH]) for start in range(0, len(cuts), _BATCH)
        ]
        *outputs, scores = (
            np.concatenate(output)[: len(boxes)] for output in zip(*parts, strict=True)
        )
        boxes[:, 4] = scores[:, 1]
        sure = boxes[:, 4] > least
        return boxes[sure], [output[sure] for output in outputs]

    def _run(self, net: int, pixels: NDArray[np.uint8]) -> list[_Array]:
        """Outputs of a network for images, [n, h, w, 3]."""
        # As the networks were trained: [n, 3, h, w], about -1 to 1.
        centered = (pixels.astype(np.float32) - 127.5) * (1 / 128)
        inputs = np.ascontiguousarray(centered.transpose(0, 3, 1, 2))
        outputs: list[Any] = self._nets[net].run(None, {"input": inputs})
        return outputs


def load_detector(name: str) -> FaceDetector:
    """Build the detector that a crop specification names.

    Raises:
        ValueError: There is no such detector, or it needs a file of landmarks.
    """
    if name == "mtcnn":
        return Mtcnn()
    if name == "precomputed":
        raise OptionError(
            "Precomputed faces come from a file of boxes and landmarks. Build "
            "PrecomputedFaces(path).get_detector(name) for each image, or take the detector 'mtcnn'."
        )
    raise OptionError(f"There is no face detector {name!r}. Detectors: {', '.join(DETECTORS)}.")


def suppress(boxes: _Array, overlap: float, *, of_smaller: bool = False) -> NDArray[np.int64]:
    """Return the indices of the boxes that no surer box covers, surest first.

    Args:
        boxes: [n, 5 or more], left, top, right, bottom, score.
        overlap: Greatest fraction of the union that two chosen boxes have in common.
        of_smaller: Whether the fraction is of the smaller box instead: a face inside a face is one face.
    """
    left, top, right, bottom, score = boxes[:, :5].T
    areas = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    order = np.argsort(-score, kind="stable")
    chosen = []
    while len(order):
        first, rest = order[0], order[1:]
        chosen.append(first)
        width = np.minimum(right[first], right[rest]) - np.maximum(left[first], left[rest])
        height = np.minimum(bottom[first], bottom[rest]) - np.maximum(top[first], top[rest])
        common = np.maximum(width, 0) * np.maximum(height, 0)
        smaller = np.minimum(areas[first], areas[rest])
        whole = smaller if of_smaller else areas[first] + areas[rest] - common
        order = rest[common <= overlap * whole]
    return np.array(chosen, np.int64)


def _move_boxes(boxes: _Array, moves: _Array) -> _Array:
    sides = np.tile(boxes[:, 2:4] - boxes[:, :2], 2)
    return np.concatenate([boxes[:, :4] + moves * sides, boxes[:, 4:5]], 1)


def _square_boxes(boxes: _Array) -> _Array:
    """Squares about the boxes on whole pixels; what has no area or flew away is dropped."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    boxes = boxes[(width > 1) & (height > 1)]
    center = (boxes[:, :2] + boxes[:, 2:4]) / 2
    half = (boxes[:, 2:4] - boxes[:, :2]).max(1, keepdims=True) / 2
    low = np.round(center - half)
    side = np.maximum(np.round(2 * half), 1)
    return np.concatenate([low, low + side, boxes[:, 4:5]], 1).astype(np.float32)
