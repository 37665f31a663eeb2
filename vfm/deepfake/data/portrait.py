"""Painter of synthetic faces: persons so different that a border between two leaves a trace."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from vfm_runtime.deepfake.faces.crop import CropSpec, scale_template
from vfm_runtime.deepfake.faces.geometry import move_points

from vfm.data.corruptions import compress_jpeg
from vfm.deepfake.data.augment import Array, Pixels

# A face is drawn this much larger, so that its edges are smooth.
_SCALE = 2
_SKIN = ((244, 208, 177), (224, 172, 133), (198, 134, 96), (141, 91, 62), (92, 58, 42))
_HAIR = ((30, 24, 22), (70, 46, 32), (122, 82, 48), (190, 150, 92), (150, 150, 150), (110, 40, 24))


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
    person = np.random.default_rng([11, seed, 1, identity])
    moment = np.random.default_rng([11, seed, 2, identity, frame])
    canvas, points = _paint(person, moment, size * _SCALE)
    return _take_picture(canvas, points, moment)


def _paint(
    person: np.random.Generator, moment: np.random.Generator, side: int
) -> tuple[Array, Array]:
    """A head before a wall, float32 [side, side, 3], and its five points, [5, 2] in pixels."""
    points = scale_template(CropSpec(size=side))
    middle, unit = points.mean(0), float(points[1, 0] - points[0, 0])
    points += person.uniform(-0.05, 0.05, (5, 2)) * unit
    points[:, 0] += moment.uniform(-0.12, 0.12) * np.array([0.4, 0.4, 1.0, 0.5, 0.5]) * unit
    skin = _SKIN[int(person.integers(len(_SKIN)))] + person.uniform(-14, 14, 3)
    hair = _HAIR[int(person.integers(len(_HAIR)))] + person.uniform(-10, 10, 3)
    wall, clothes, iris = (person.uniform(20, 235, 3) for _ in range(3))

    def fill(
        image: Array, center: Array, down: float, width: float, height: float, color: ArrayLike
    ) -> None:
        """An ellipse below a point; lengths and half axes are in units of the distance of the eyes."""
        x, y = round(float(center[0])), round(float(center[1] + down * unit))
        axes = (max(1, round(width * unit)), max(1, round(height * unit)))
        levels = np.broadcast_to(np.asarray(color, float), 3).tolist()
        cv2.ellipse(image, (x, y), axes, 0, 0, 360, levels, -1, cv2.LINE_AA)

    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    x, y = (columns - middle[0]) / unit, (rows - middle[1]) / unit
    slope = person.uniform(-0.3, 0.3) * x + person.uniform(-0.3, 0.3) * y
    canvas: Array = (wall + 90 * slope[..., None]).astype(np.float32)
    width, height = person.uniform(0.98, 1.18), person.uniform(1.42, 1.62)
    fill(canvas, middle, -0.2, width * 1.15, height * 1.12, hair)
    if person.random() < 0.5:  # long hair
        fill(canvas, middle, 0.8, width * 1.2, height, hair)
    fill(canvas, middle, 3.2, 2.9, 1.4, clothes)
    fill(canvas, middle, 1.4, person.uniform(0.55, 0.75), 0.9, skin * 0.75)

    light = moment.uniform(-0.28, 0.28) * x - moment.uniform(0, 0.2) * y
    shade = 1 + 0.8 * light - 0.12 * np.clip(x**2 + y**2, 0, 3)
    grain = person.standard_normal((side // 3, side // 3), np.float32)
    pores = cv2.resize(grain, (side, side), interpolation=cv2.INTER_CUBIC)
    face = skin * shade[..., None] + person.uniform(2, 6) * pores[..., None]
    for mole in person.uniform(-0.6, 0.6, (int(person.integers(0, 7)), 2)):
        fill(face, middle + mole * unit, 0.4, 0.03, 0.03, skin * 0.6)
    forehead = middle[1] - person.uniform(0.8, 1.15) * unit
    face[rows < forehead + person.uniform(-0.3, 0.3) * (columns - middle[0])] = hair
    inside = np.zeros((side, side, 3), np.float32)
    fill(inside, middle, -0.1, width, height, 1)
    canvas += (face.astype(np.float32) - canvas) * inside

    eye_width, eye_height = person.uniform(0.2, 0.28), person.uniform(0.09, 0.15)
    opening = moment.uniform(0.6, 1.0) if moment.random() < 0.9 else 0.2
    brow, thickness = person.uniform(0.26, 0.4), person.uniform(0.03, 0.07)
    for eye in points[:2]:
        fill(canvas, eye, -brow, 0.27, thickness, hair * 0.9)
        fill(canvas, eye, 0, eye_width, eye_height * opening, (236, 232, 228))
        fill(canvas, eye, 0, 0.1, 0.1 * opening, iris * 0.6)
        fill(canvas, eye, 0, 0.05, 0.05 * opening, 12)
    fill(canvas, points[2], -0.3, 0.04, 0.3, np.clip(skin * 1.12, 0, 255))
    fill(canvas, points[2], 0, person.uniform(0.12, 0.2), 0.06, skin * 0.72)
    lips = skin * (0.8, 0.55, 0.55) + (person.uniform(0, 40), 0, 0)
    mouth, half = points[3:].mean(0), float(points[4, 0] - points[3, 0]) / 2 / unit
    fill(canvas, mouth, 0, half, person.uniform(0.1, 0.2), lips)
    fill(canvas, mouth, 0, half * 0.8, moment.uniform(0.012, 0.08), (60, 20, 22))
    return canvas, points


def _take_picture(canvas: Array, points: Array, moment: np.random.Generator) -> Portrait:
    """The picture as a camera takes it: turned, in its colours, not quite sharp, with noise, often as a JPEG."""
    side = canvas.shape[0]
    size, middle = side // _SCALE, np.full(2, side / 2)
    angle, scale = np.deg2rad(moment.uniform(-7, 7)), moment.uniform(0.95, 1.06)
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shift = middle + moment.uniform(-0.02, 0.02, 2) * side - turn @ middle
    matrix = np.column_stack([turn, shift])
    image: Array = cv2.warpAffine(canvas, matrix, (side, side), borderMode=cv2.BORDER_REFLECT)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    image = cv2.GaussianBlur(image, (0, 0), moment.uniform(0.2, 0.7) * max(1.0, size / 128))
    image = image * moment.uniform(0.92, 1.08, 3) + moment.uniform(-12, 12)
    image = image + moment.uniform(1.5, 5.0) * moment.standard_normal(image.shape)
    pixels: Array = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if moment.random() < 0.6:
        pixels = compress_jpeg(pixels, int(moment.integers(75, 98)))
    return Portrait(pixels, move_points(points, matrix) / _SCALE)
