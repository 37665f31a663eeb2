"""Drawn faces of persons that do not exist, different enough that a border between two of them leaves a trace."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from vfm_runtime.deepfake.faces.crop import CropSpec, template

from vfm.deepfake.data.augment import Array, Pixels, through_jpeg

# Drawn this much larger, so that edges are smooth.
_SHARPER = 2
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
    """A person's face, cut out about as `CropSpec(size=size)` would.

    Args:
        identity: From 0; decides on features, hair, skin and surroundings.
        frame: From 0; decides on pose, light, mouth and noise.
        size: Side in pixels, 32 or more.
        seed: Of all persons.
    """
    return _Painter(identity, frame, size, seed).face()


class _Painter:
    """Draws one picture."""

    def __init__(self, identity: int, frame: int, size: int, seed: int) -> None:
        self.who = _random(seed, 1, identity)
        self.now = _random(seed, 2, identity, frame)
        self.size = size
        self.side = size * _SHARPER
        self.spot = template(CropSpec(size=256)) * (self.side / 256)
        self.unit = float(self.spot[1, 0] - self.spot[0, 0])
        skin = self.who.integers(len(_SKIN))
        self.skin = np.array(_SKIN[skin]) + self.who.uniform(-14, 14, 3)
        self.hair = np.array(_HAIR[self.who.integers(len(_HAIR))]) + self.who.uniform(-10, 10, 3)
        self.iris = np.array(_IRIS[self.who.integers(len(_IRIS))])
        self.middle = self.spot.mean(axis=0)

    def face(self) -> Portrait:
        canvas = self._ground()
        grain = self.who.standard_normal((self.side // 3, self.side // 3, 1), np.float32)
        mole = [self._near(0.0, 0.5, 0.6, 0.5) for _ in range(int(self.who.integers(0, 7)))]
        width, height = self.who.uniform(0.98, 1.18), self.who.uniform(1.42, 1.62)
        self._hair_behind(canvas, width, height)
        self._neck(canvas)
        self._head(canvas, width, height, grain, mole)
        points = self._features(canvas)
        self._fringe(canvas, width, height)
        return self._taken(canvas, points)

    def _near(self, x: float, y: float, wide: float, high: float) -> tuple[float, float]:
        return x + wide * self.who.uniform(-1, 1), y + high * self.who.uniform(-1, 1)

    def _at(self, x: float, y: float) -> NDArray[np.float64]:
        """A place in units of the distance of the eyes, from the middle of the face."""
        place: NDArray[np.float64] = self.middle + np.array([x, y]) * self.unit
        return place

    def _ground(self) -> Array:
        """A wall, a gradient and a few shapes out of focus."""
        side = self.side
        first, second = self.who.uniform(20, 235, (2, 3))
        slope = np.linspace(0, 1, side, dtype=np.float32)
        share = slope[:, None] * self.who.uniform(-1, 1) + slope[None] * self.who.uniform(-1, 1)
        canvas: Array = (first + (second - first) * np.clip(share + 0.5, 0, 1)[..., None]).astype(
            np.float32
        )
        for _ in range(int(self.who.integers(2, 9))):
            low = self.who.uniform(-0.2, 1, 2) * side
            high = low + self.who.uniform(0.05, 0.5, 2) * side
            colour = self.who.uniform(10, 245, 3).tolist()
            cv2.rectangle(canvas, _whole(low), _whole(high), colour, -1)
        return cv2.GaussianBlur(canvas, (0, 0), self.who.uniform(0.004, 0.03) * side)

    def _oval(self, width: float, height: float, shift: float = 0.0) -> NDArray[np.int32]:
        """An outline of the head, narrower at the chin."""
        angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        narrow = 1 - 0.16 * np.clip(np.sin(angle), 0, 1) ** 2
        places = np.stack([np.cos(angle) * width * narrow, np.sin(angle) * height - 0.1 + shift], 1)
        outline: NDArray[np.int32] = np.rint(self.middle + places * self.unit).astype(np.int32)
        return outline

    def _hair_behind(self, canvas: Array, width: float, height: float) -> None:
        self.length = self.who.choice([0.0, 0.0, 0.5, 1.4])
        outline = self._oval(width * 1.13, height * 1.1, -0.08)
        cv2.fillPoly(canvas, [outline], self.hair.tolist(), cv2.LINE_AA)
        if self.length:
            low, high = self._at(-width * 1.12, -0.3), self._at(width * 1.12, self.length)
            cv2.rectangle(canvas, _whole(low), _whole(high), self.hair.tolist(), -1)

    def _neck(self, canvas: Array) -> None:
        half = self.who.uniform(0.55, 0.75)
        low, high = self._at(-half, 0.8), self._at(half, 4)
        cv2.rectangle(canvas, _whole(low), _whole(high), (self.skin * 0.75).tolist(), -1)
        clothes = self.who.uniform(10, 240, 3).tolist()
        shoulders = [
            self._at(-4, 4),
            self._at(-2.6, 2.0),
            self._at(0, 1.9),
            self._at(2.6, 2.0),
            self._at(4, 4),
        ]
        cv2.fillPoly(canvas, [np.rint(shoulders).astype(np.int32)], clothes, cv2.LINE_AA)

    def _head(
        self,
        canvas: Array,
        width: float,
        height: float,
        grain: Array,
        moles: list[tuple[float, float]],
    ) -> None:
        side = self.side
        inside = np.zeros((side, side), np.float32)
        cv2.fillPoly(inside, [self._oval(width, height)], 1.0, cv2.LINE_AA)
        rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
        x = (columns - self.middle[0]) / (width * self.unit)
        y = (rows - self.middle[1]) / (height * self.unit)
        light = self.now.uniform(-0.28, 0.28) * x - self.now.uniform(0.0, 0.2) * y
        shade = 1 + light - 0.22 * np.clip(x**2 + y**2, 0, 1.5)
        pores = cv2.resize(grain, (side, side), interpolation=cv2.INTER_CUBIC)
        face = self.skin * shade[..., None] + self.who.uniform(2, 6) * pores[..., None]
        cheeks = np.exp(-(((np.abs(x) - 0.5) / 0.28) ** 2) - ((y - 0.12) / 0.22) ** 2)
        face += np.array([14, -6, -6]) * (self.who.uniform(0, 1) * cheeks)[..., None]
        for place in moles:
            cv2.circle(
                face,
                _whole(self._at(*place)),
                max(1, round(0.03 * self.unit)),
                (self.skin * 0.6).tolist(),
                -1,
            )
        if self.who.random() < 0.3:
            beard = np.clip((y - 0.28) / 0.2, 0, 1) * self.who.uniform(0.2, 0.6)
            face += (self.hair - face) * beard[..., None]
        canvas += (face.astype(np.float32) - canvas) * inside[..., None]

    def _features(self, canvas: Array) -> NDArray[np.float64]:
        """Eyes, brows, nose and mouth; gives the five points."""
        turn = self.now.uniform(-0.12, 0.12)
        points = self.spot + self.who.uniform(-0.05, 0.05, (5, 2)) * self.unit
        points[:, 0] += turn * np.array([0.4, 0.4, 1.0, 0.5, 0.5]) * self.unit
        eye = self.who.uniform(0.2, 0.28), self.who.uniform(0.09, 0.15)
        open_ = self.now.uniform(0.6, 1.0) if self.now.random() < 0.9 else 0.15
        gaze = self.now.uniform(-0.06, 0.06)
        brow, thick, slant = (
            self.who.uniform(0.26, 0.4),
            self.who.uniform(0.04, 0.11),
            self.who.uniform(-0.08, 0.08),
        )
        for side, place in zip((-1, 1), points[:2], strict=True):
            self._eye(canvas, place, (eye[0], eye[1] * open_), gaze)
            inner = place + np.array([-0.2 * side, -brow + slant]) * self.unit
            outer = place + np.array([0.28 * side, -brow - slant * 0.3]) * self.unit
            cv2.line(
                canvas,
                _whole(inner),
                _whole(outer),
                (self.hair * 0.9).tolist(),
                self._pixels(thick),
                cv2.LINE_AA,
            )
        self._nose(canvas, points)
        self._mouth(canvas, points)
        if self.who.random() < 0.25:
            self._glasses(canvas, points)
        return points

    def _eye(self, canvas: Array, place: Array, half: tuple[float, float], gaze: float) -> None:
        unit = self.unit
        axes = (self._pixels(half[0]), self._pixels(half[1]))
        cv2.ellipse(canvas, _whole(place), axes, 0, 0, 360, (236.0, 232.0, 228.0), -1, cv2.LINE_AA)
        radius = self._pixels(min(half[1], 0.11))
        centre = _whole(place + np.array([gaze, 0]) * unit)
        cv2.circle(canvas, centre, radius, self.iris.tolist(), -1, cv2.LINE_AA)
        cv2.circle(canvas, centre, max(1, radius // 2), (12.0, 12.0, 12.0), -1, cv2.LINE_AA)
        glint = (centre[0] + radius // 3, centre[1] - radius // 3)
        cv2.circle(canvas, glint, max(1, radius // 5), (255.0, 255.0, 255.0), -1, cv2.LINE_AA)
        cv2.ellipse(
            canvas,
            _whole(place),
            axes,
            0,
            180,
            360,
            (self.skin * 0.35).tolist(),
            self._pixels(0.03),
            cv2.LINE_AA,
        )

    def _nose(self, canvas: Array, points: Array) -> None:
        tip, width = points[2], self.who.uniform(0.14, 0.24)
        bridge = (points[0] + points[1]) / 2
        dark, bright = (self.skin * 0.72).tolist(), np.clip(self.skin * 1.12, 0, 255).tolist()
        edge = bridge + np.array([-0.09, 0.1]) * self.unit
        cv2.line(
            canvas,
            _whole(edge),
            _whole(tip + np.array([-width, 0]) * self.unit),
            dark,
            self._pixels(0.03),
            cv2.LINE_AA,
        )
        cv2.line(canvas, _whole(bridge), _whole(tip), bright, self._pixels(0.05), cv2.LINE_AA)
        for side in (-1, 1):
            hole = tip + np.array([side * width * 0.6, 0.08]) * self.unit
            cv2.ellipse(
                canvas,
                _whole(hole),
                (self._pixels(0.06), self._pixels(0.03)),
                0,
                0,
                360,
                dark,
                -1,
                cv2.LINE_AA,
            )

    def _mouth(self, canvas: Array, points: Array) -> None:
        left, right = points[3], points[4]
        middle, half = (left + right) / 2, float(np.linalg.norm(right - left)) / 2
        lips = self.skin * np.array([0.8, 0.55, 0.55]) + np.array([self.who.uniform(0, 40), 0, 0])
        full = self.who.uniform(0.1, 0.2)
        axes = (max(1, round(half)), self._pixels(full))
        cv2.ellipse(canvas, _whole(middle), axes, 0, 0, 360, lips.tolist(), -1, cv2.LINE_AA)
        gap = self.now.uniform(0.012, 0.08)
        axes = (max(1, round(half * 0.8)), self._pixels(gap))
        cv2.ellipse(canvas, _whole(middle), axes, 0, 0, 360, (60.0, 20.0, 22.0), -1, cv2.LINE_AA)

    def _glasses(self, canvas: Array, points: Array) -> None:
        colour, thick = (
            self.who.uniform(0, 90, 3).tolist(),
            self._pixels(self.who.uniform(0.03, 0.07)),
        )
        radius = self._pixels(self.who.uniform(0.3, 0.4))
        for place in points[:2]:
            cv2.circle(canvas, _whole(place), radius, colour, thick, cv2.LINE_AA)
        towards = np.array([radius, 0])
        cv2.line(
            canvas,
            _whole(points[0] + towards),
            _whole(points[1] - towards),
            colour,
            thick,
            cv2.LINE_AA,
        )

    def _fringe(self, canvas: Array, width: float, height: float) -> None:
        """Hair over the forehead."""
        line = self.who.uniform(0.62, 0.85)
        inside, upper = (np.zeros(canvas.shape[:2], np.float32) for _ in range(2))
        cv2.fillPoly(inside, [self._oval(width * 1.03, height * 1.03, -0.03)], 1.0, cv2.LINE_AA)
        top = self._at(0, -height * line)
        slope = self.who.uniform(-0.35, 0.35) * self.unit
        corners = [
            (-9, -9),
            (self.side + 9, -9),
            (self.side + 9, top[1] + slope),
            (-9, top[1] - slope),
        ]
        cv2.fillPoly(upper, [np.rint(corners).astype(np.int32)], 1.0, cv2.LINE_AA)
        strands = self.who.standard_normal((4, self.side // 4, 1), np.float32) * 16
        colour = (
            self.hair
            + cv2.resize(strands, (self.side, self.side), interpolation=cv2.INTER_CUBIC)[..., None]
        )
        canvas += (colour.astype(np.float32) - canvas) * (inside * upper)[..., None]

    def _taken(self, canvas: Array, points: Array) -> Portrait:
        """The picture as a camera takes it: turned, in its colours, not quite sharp, with noise, often as a JPEG."""
        size = self.size
        angle, scale = np.deg2rad(self.now.uniform(-7, 7)), self.now.uniform(0.95, 1.06)
        turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        shift = self.middle + self.now.uniform(-0.02, 0.02, 2) * self.side - turn @ self.middle
        matrix = np.column_stack([turn, shift])
        moved: Array = cv2.warpAffine(
            canvas,
            matrix,
            (self.side, self.side),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
        small: Array = cv2.resize(moved, (size, size), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), self.now.uniform(0.2, 0.7) * max(1.0, size / 128))
        small = small * self.now.uniform(0.92, 1.08, 3) + self.now.uniform(-12, 12)
        small = small + self.now.uniform(1.5, 5.0) * self.now.standard_normal(small.shape)
        pixels: Array = np.clip(np.rint(small), 0, 255).astype(np.uint8)
        if self.now.random() < 0.6:
            pixels = through_jpeg(pixels, int(self.now.integers(75, 98)))
        places: NDArray[np.float64] = (points @ turn.T + shift) / _SHARPER
        return Portrait(pixels, places)

    def _pixels(self, length: float) -> int:
        return max(1, round(length * self.unit))


def _random(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([11, *key])))


def _whole(place: Any) -> tuple[int, int]:
    return round(float(place[0])), round(float(place[1]))
