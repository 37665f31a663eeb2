"""Painter of synthetic faces: persons so different that a border between two leaves a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from vfm_runtime.deepfake.faces.crop import CropSpec, scale_template

from vfm.deepfake.data.augment import Array, Pixels, compress_jpeg

# A face is drawn this much larger, so that its edges are smooth.
_SCALE = 2
_SKIN = ((244, 208, 177), (224, 172, 133), (198, 134, 96), (141, 91, 62), (92, 58, 42))
_HAIR = ((30, 24, 22), (70, 46, 32), (122, 82, 48), (190, 150, 92), (150, 150, 150), (110, 40, 24))
_IRIS = ((70, 45, 30), (90, 110, 60), (80, 120, 150), (60, 60, 60))


class Portrait(NamedTuple):
    """One picture of a generated person."""

    pixels: Pixels
    """uint8 [s, s, 3]."""
    landmarks: NDArray[np.float64]
    """[5, 2], in the order of `vfm_runtime.deepfake.faces.crop.TEMPLATE`, in pixels."""


def draw_face(identity: int, frame: int, size: int = 256, seed: int = 0) -> Portrait:
    """Draw a person's face, cut out about as `CropSpec(size=size)` would.

    Args:
        identity: Number of the person, from 0: decides on features, hair, skin and surroundings.
        frame: Number of the picture, from 0: decides on pose, light, mouth and noise.
        size: Side in pixels, 32 or more.
        seed: Seed of all persons.
    """
    return _Painter(identity, frame, size, seed).paint()


class _Painter:
    """Draws one picture; lengths are in units of the distance of the eyes, about the middle of the face."""

    def __init__(self, identity: int, frame: int, size: int, seed: int) -> None:
        self.person, self.moment = (
            np.random.Generator(np.random.Philox(np.random.SeedSequence([11, seed, *key])))
            for key in ((1, identity), (2, identity, frame))
        )
        self.size, self.side = size, size * _SCALE
        self.spots = scale_template(CropSpec(size=256)) * (self.side / 256)
        self.unit = float(self.spots[1, 0] - self.spots[0, 0])
        self.middle = self.spots.mean(axis=0)
        self.skin = self._pick(_SKIN) + self.person.uniform(-14, 14, 3)
        self.hair = self._pick(_HAIR) + self.person.uniform(-10, 10, 3)
        self.iris = self._pick(_IRIS)
        self.canvas: Array = np.zeros(0)

    def paint(self) -> Portrait:
        self._paint_background()
        grain = self.person.standard_normal((self.side // 3, self.side // 3, 1), np.float32)
        count = int(self.person.integers(0, 7))
        moles = [(0, 0.5) + self.person.uniform(-1, 1, 2) * (0.6, 0.5) for _ in range(count)]
        width, height = self.person.uniform(0.98, 1.18), self.person.uniform(1.42, 1.62)
        self._paint_hair_and_neck(width, height)
        self._paint_head(width, height, grain, moles)
        points = self._paint_features()
        self._paint_fringe(width, height)
        return self._take_picture(points)

    def _paint_background(self) -> None:
        """A wall, a gradient and a few shapes out of focus."""
        first, second = self.person.uniform(20, 235, (2, 3))
        slope = np.linspace(0, 1, self.side, dtype=np.float32)
        x, y = (self.person.uniform(-1, 1) for _ in range(2))
        fraction = np.clip(slope[:, None] * x + slope[None] * y + 0.5, 0, 1)
        self.canvas = (first + (second - first) * fraction[..., None]).astype(np.float32)
        for _ in range(int(self.person.integers(2, 9))):
            low = self.person.uniform(-0.2, 1, 2) * self.side
            high = low + self.person.uniform(0.05, 0.5, 2) * self.side
            color = self.person.uniform(10, 245, 3).tolist()
            cv2.rectangle(self.canvas, _round(low), _round(high), color, -1)
        blur = self.person.uniform(0.004, 0.03) * self.side
        self.canvas = cv2.GaussianBlur(self.canvas, (0, 0), blur)

    def _paint_hair_and_neck(self, width: float, height: float) -> None:
        length = self.person.choice([0.0, 0.0, 0.5, 1.4])
        self._fill(self._outline_head(width * 1.13, height * 1.1, -0.08), self.hair)
        if length:
            self._fill_box((-width * 1.12, -0.3), (width * 1.12, length), self.hair)
        half = self.person.uniform(0.55, 0.75)
        self._fill_box((-half, 0.8), (half, 4), self.skin * 0.75)
        shoulders = [(-4, 4), (-2.6, 2.0), (0, 1.9), (2.6, 2.0), (4, 4)]
        self._fill(self._locate(shoulders), self.person.uniform(10, 240, 3))

    def _paint_head(
        self, width: float, height: float, grain: Array, moles: Sequence[ArrayLike]
    ) -> None:
        side = self.side
        inside = np.zeros((side, side), np.float32)
        cv2.fillPoly(inside, [self._outline_head(width, height)], 1.0, cv2.LINE_AA)
        rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
        x = (columns - self.middle[0]) / (width * self.unit)
        y = (rows - self.middle[1]) / (height * self.unit)
        light = self.moment.uniform(-0.28, 0.28) * x - self.moment.uniform(0.0, 0.2) * y
        shade = 1 + light - 0.22 * np.clip(x**2 + y**2, 0, 1.5)
        pores = cv2.resize(grain, (side, side), interpolation=cv2.INTER_CUBIC)
        face = self.skin * shade[..., None] + self.person.uniform(2, 6) * pores[..., None]
        cheeks = np.exp(-(((np.abs(x) - 0.5) / 0.28) ** 2) - ((y - 0.12) / 0.22) ** 2)
        face += np.array([14, -6, -6]) * (self.person.uniform(0, 1) * cheeks)[..., None]
        for mole in moles:
            color = (self.skin * 0.6).tolist()
            cv2.circle(face, _round(self._locate(mole)), self._scale(0.03), color, -1)
        if self.person.random() < 0.3:
            beard = np.clip((y - 0.28) / 0.2, 0, 1) * self.person.uniform(0.2, 0.6)
            face += (self.hair - face) * beard[..., None]
        self.canvas += (face.astype(np.float32) - self.canvas) * inside[..., None]

    def _paint_features(self) -> NDArray[np.float64]:
        """Eyes, brows, nose, mouth and perhaps glasses; gives the five points, [5, 2] in pixels of the canvas."""
        turn = self.moment.uniform(-0.12, 0.12)
        points = self.spots + self.person.uniform(-0.05, 0.05, (5, 2)) * self.unit
        points[:, 0] += turn * np.array([0.4, 0.4, 1.0, 0.5, 0.5]) * self.unit
        eye_width, eye_height = self.person.uniform(0.2, 0.28), self.person.uniform(0.09, 0.15)
        eye_height *= self.moment.uniform(0.6, 1.0) if self.moment.random() < 0.9 else 0.15
        gaze = self.moment.uniform(-0.06, 0.06)
        brow, thick = self.person.uniform(0.26, 0.4), self.person.uniform(0.04, 0.11)
        slant = self.person.uniform(-0.08, 0.08)
        for side, eye in zip((-1, 1), points[:2], strict=True):
            self._paint_eye(eye, eye_width, eye_height, gaze)
            inner, outer = (-0.2 * side, -brow + slant), (0.28 * side, -brow - slant * 0.3)
            self._draw_line(eye, inner, eye, outer, self.hair * 0.9, thick)
        nose_width = self.person.uniform(0.14, 0.24)
        bridge, tip = (points[0] + points[1]) / 2, points[2]
        self._draw_line(bridge, (-0.09, 0.1), tip, (-nose_width, 0), self.skin * 0.72, 0.03)
        self._draw_line(bridge, (0, 0), tip, (0, 0), np.clip(self.skin * 1.12, 0, 255), 0.05)
        for side in (-1, 1):
            nostril = tip + np.array([side * nose_width * 0.6, 0.08]) * self.unit
            self._draw_ellipse(nostril, self._scale(0.06), self._scale(0.03), self.skin * 0.72)
        lips = self.skin * np.array([0.8, 0.55, 0.55]) + (self.person.uniform(0, 40), 0, 0)
        mouth = (points[3] + points[4]) / 2
        half = float(np.linalg.norm(points[4] - points[3])) / 2
        fullness, gap = self.person.uniform(0.1, 0.2), self.moment.uniform(0.012, 0.08)
        self._draw_ellipse(mouth, max(1, round(half)), self._scale(fullness), lips)
        self._draw_ellipse(mouth, max(1, round(half * 0.8)), self._scale(gap), (60, 20, 22))
        if self.person.random() < 0.25:
            self._paint_glasses(points)
        return points

    def _paint_eye(self, eye: Array, width: float, height: float, gaze: float) -> None:
        axes = (self._scale(width), self._scale(height))
        self._draw_ellipse(eye, *axes, (236, 232, 228))
        radius = self._scale(min(height, 0.11))
        x, y = _round(eye + np.array([gaze, 0]) * self.unit)
        self._draw_circle((x, y), radius, self.iris)
        self._draw_circle((x, y), max(1, radius // 2), (12, 12, 12))
        self._draw_circle((x + radius // 3, y - radius // 3), max(1, radius // 5), (255, 255, 255))
        lid, thickness = (self.skin * 0.35).tolist(), self._scale(0.03)
        cv2.ellipse(self.canvas, _round(eye), axes, 0, 180, 360, lid, thickness, cv2.LINE_AA)

    def _paint_glasses(self, points: Array) -> None:
        color, thick = self.person.uniform(0, 90, 3), self.person.uniform(0.03, 0.07)
        radius = self._scale(self.person.uniform(0.3, 0.4))
        for eye in points[:2]:
            self._draw_circle(_round(eye), radius, color, self._scale(thick))
        bar = (_round(points[0] + (radius, 0)), _round(points[1] - (radius, 0)))
        cv2.line(self.canvas, *bar, color.tolist(), self._scale(thick), cv2.LINE_AA)

    def _paint_fringe(self, width: float, height: float) -> None:
        """Hair over the forehead."""
        side = self.side
        line = self.person.uniform(0.62, 0.85)
        inside, upper = (np.zeros((side, side), np.float32) for _ in range(2))
        outline = self._outline_head(width * 1.03, height * 1.03, -0.03)
        cv2.fillPoly(inside, [outline], 1.0, cv2.LINE_AA)
        top = self._locate((0, -height * line))[1]
        slope = self.person.uniform(-0.35, 0.35) * self.unit
        corners = [(-9, -9), (side + 9, -9), (side + 9, top + slope), (-9, top - slope)]
        cv2.fillPoly(upper, [np.rint(corners).astype(np.int32)], 1.0, cv2.LINE_AA)
        strands: Array = self.person.standard_normal((4, side // 4, 1), np.float32) * 16
        strands = cv2.resize(strands, (side, side), interpolation=cv2.INTER_CUBIC)
        hair = (self.hair + strands[..., None]).astype(np.float32)
        self.canvas += (hair - self.canvas) * (inside * upper)[..., None]

    def _take_picture(self, points: Array) -> Portrait:
        """The picture as a camera takes it: turned, in its colours, not quite sharp, with noise, often as a JPEG."""
        size, moment = self.size, self.moment
        angle, scale = np.deg2rad(moment.uniform(-7, 7)), moment.uniform(0.95, 1.06)
        turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        shift = self.middle + moment.uniform(-0.02, 0.02, 2) * self.side - turn @ self.middle
        matrix, border = np.column_stack([turn, shift]), cv2.BORDER_REFLECT
        image: Array = cv2.warpAffine(
            self.canvas, matrix, (self.side, self.side), borderMode=border
        )
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        image = cv2.GaussianBlur(image, (0, 0), moment.uniform(0.2, 0.7) * max(1.0, size / 128))
        image = image * moment.uniform(0.92, 1.08, 3) + moment.uniform(-12, 12)
        image = image + moment.uniform(1.5, 5.0) * moment.standard_normal(image.shape)
        pixels: Array = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        if moment.random() < 0.6:
            pixels = compress_jpeg(pixels, int(moment.integers(75, 98)))
        return Portrait(pixels, (points @ turn.T + shift) / _SCALE)

    def _pick(self, colors: Sequence[tuple[int, ...]]) -> Array:
        return np.array(colors[int(self.person.integers(len(colors)))])

    def _locate(self, points: ArrayLike) -> Array:
        """Pixels of the canvas, [..., 2], where points in units lie."""
        located: Array = self.middle + np.asarray(points) * self.unit
        return located

    def _scale(self, length: float) -> int:
        """Whole pixels of a length in units, at least one."""
        return max(1, round(length * self.unit))

    def _outline_head(self, width: float, height: float, shift: float = 0.0) -> NDArray[np.int32]:
        """An oval, narrower at the chin: int32 [60, 2] in pixels."""
        angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        narrow = 1 - 0.16 * np.clip(np.sin(angle), 0, 1) ** 2
        points = [np.cos(angle) * width * narrow, np.sin(angle) * height - 0.1 + shift]
        outline: NDArray[np.int32] = np.rint(self._locate(np.stack(points, 1))).astype(np.int32)
        return outline

    def _fill(self, corners: Array, color: Array) -> None:
        polygon = np.rint(corners).astype(np.int32)
        cv2.fillPoly(self.canvas, [polygon], color.tolist(), cv2.LINE_AA)

    def _fill_box(self, low: ArrayLike, high: ArrayLike, color: Array) -> None:
        first, second = (_round(self._locate(corner)) for corner in (low, high))
        cv2.rectangle(self.canvas, first, second, color.tolist(), -1)

    def _draw_line(
        self,
        start: Array,
        first: ArrayLike,
        end: Array,
        second: ArrayLike,
        color: Array,
        thick: float,
    ) -> None:
        """A line from an offset of one point to an offset of another."""
        ends = (
            _round(start + np.asarray(first) * self.unit),
            _round(end + np.asarray(second) * self.unit),
        )
        cv2.line(self.canvas, *ends, color.tolist(), self._scale(thick), cv2.LINE_AA)

    def _draw_ellipse(self, center: Array, x: int, y: int, color: Any) -> None:
        color = [float(level) for level in color]
        cv2.ellipse(self.canvas, _round(center), (x, y), 0, 0, 360, color, -1, cv2.LINE_AA)

    def _draw_circle(
        self, center: tuple[int, int], radius: int, color: Any, thickness: int = -1
    ) -> None:
        color = [float(level) for level in color]
        cv2.circle(self.canvas, center, radius, color, thickness, cv2.LINE_AA)


def _round(point: Array) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))
