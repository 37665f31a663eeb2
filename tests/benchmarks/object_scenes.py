"""Scenes that teach a head what an object is: cut-outs and shapes on photos and drawn grounds.

    python tests/benchmarks/object_scenes.py OUT [--count 8000] [--seed 0]

For recipes/detection/objects.yaml. Cut-outs are the pictures of Noto Color Emoji (SIL Open Font License) that
`EMOJI_KINDS` does not have, the others are for tests; shapes are filled with colors, patterns and pieces of photos. The
photos are those of scikit-image that no other script takes. Sizes, turns, colors, shadows, blends, occlusions and
crowds are drawn. OUT becomes a COCO folder; `glyphs.json` in it lists the code points that were shown.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detection_sets import render
from fontTools.ttLib import TTFont
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter
from skimage import data as photos
from small_sets import EMOJI_KINDS, FONT

SIDE = 320
SIZES = (14, 250)
MOST, CROWD = 8, 40
SEEN = 0.35
"""Part of an object that others must leave visible."""
PHOTOS = ("cell", "clock", "hubble_deep_field", "immunohistochemistry", "text", "stereo_motorcycle")
FIRST_GLYPH = 0x2300


class Object(NamedTuple):
    """A picture with alpha, and what it is."""

    picture: Image.Image
    label: str


class Box(NamedTuple):
    """Where an object is, in pixels of its scene."""

    left: int
    top: int
    right: int
    bottom: int
    label: str


class Scene(NamedTuple):
    """A picture with its objects."""

    pixels: Image.Image
    boxes: list[Box]


@functools.cache
def list_glyphs() -> tuple[str, ...]:
    """Pictures that tests do not use."""
    used = set("".join(EMOJI_KINDS.values()))
    with TTFont(FONT, lazy=True) as font:
        points = sorted(font.getBestCmap())
    # Regional indicators and skin tones are parts of others.
    parts = {*range(0x1F1E6, 0x1F200), *range(0x1F3FB, 0x1F400)}
    glyphs = [chr(p) for p in points if p >= FIRST_GLYPH and p not in parts and chr(p) not in used]
    return tuple(g for g in glyphs if ord(g) < 0xE0000 and render(g).getbbox() is not None)


@functools.cache
def load_photo(name: str) -> Image.Image:
    pixels = getattr(photos, name)()
    pixels = pixels[0] if isinstance(pixels, tuple) else pixels
    return Image.fromarray(pixels).convert("RGB")


def draw_color(random: np.random.Generator) -> tuple[int, ...]:
    return tuple(random.integers(0, 256, 3).tolist())


def cut_photo(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    photo = load_photo(PHOTOS[int(random.integers(len(PHOTOS)))])
    taken = int(random.integers(min(photo.size) // 6, min(photo.size)))
    left, top = (int(random.integers(extent - taken + 1)) for extent in photo.size)
    turned = photo.crop((left, top, left + taken, top + taken)).rotate(90 * int(random.integers(4)))
    return change_colors(random, turned.resize(size, Image.Resampling.BILINEAR))


def change_colors(random: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Turn hues, or leave grays alone; change brightness and contrast."""
    drawn = random.random()
    if drawn < 0.15:
        picture = picture.convert("L").convert("RGB")
    elif drawn < 0.5:
        hue, saturation, value = picture.convert("HSV").split()
        shift = int(random.integers(256))
        picture = Image.merge(
            "HSV", (hue.point(lambda v: (v + shift) % 256), saturation, value)
        ).convert("RGB")
    picture = ImageEnhance.Brightness(picture).enhance(random.uniform(0.5, 1.3))
    return ImageEnhance.Contrast(picture).enhance(random.uniform(0.6, 1.3))


def draw_noise(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Colored noise of several scales."""
    total = np.zeros((size[1], size[0], 3))
    for level in range(1, int(random.integers(2, 7))):
        cells = random.random((2**level, 2**level, 3)) * 255
        grid = Image.fromarray(cells.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        total += np.asarray(grid, float) / 2 ** (level * random.uniform(0.2, 1.0))
    low, high = total.min(), total.max()
    return Image.fromarray(((total - low) / max(high - low, 1) * 255).astype(np.uint8))


def draw_stripes(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Stripes or checks of two colors."""
    first, second = np.array([draw_color(random), draw_color(random)], float)
    rows, columns = np.mgrid[: size[1], : size[0]]
    angle, period = random.uniform(0, math.pi), random.uniform(4, 60)
    along = np.cos(angle) * columns + np.sin(angle) * rows
    across = np.cos(angle) * rows - np.sin(angle) * columns
    wave = np.sin(2 * math.pi * along / period)
    if random.random() < 0.4:
        wave = wave * np.sin(2 * math.pi * across / period)
    share = (np.tanh(wave * random.uniform(1, 8)) + 1)[..., None] / 2
    return Image.fromarray((first * share + second * (1 - share)).astype(np.uint8))


def draw_gradient(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    corners = random.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def draw_plain(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, draw_color(random))


SURFACES: dict[str, Callable[[np.random.Generator, tuple[int, int]], Image.Image]] = {
    "photo": cut_photo,
    "noise": draw_noise,
    "stripes": draw_stripes,
    "gradient": draw_gradient,
    "plain": draw_plain,
}


def draw_surface(
    random: np.random.Generator, size: tuple[int, int], weights: tuple[float, ...]
) -> tuple[Image.Image, str]:
    """A surface and its name in SURFACES, drawn by weights in that order."""
    name = str(random.choice(list(SURFACES), p=weights))
    return SURFACES[name](random, size), name


def draw_mask(random: np.random.Generator, side: int) -> Image.Image:
    """One to three overlapping ellipses, polygons, rounded rectangles and blobs."""
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    for number in range(int(random.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        extent = side * (random.uniform(0.6, 1.0) if number == 0 else random.uniform(0.2, 0.6))
        ratio = random.uniform(0.35, 1.0)
        width, height = (
            (extent, extent * ratio) if random.random() < 0.5 else (extent * ratio, extent)
        )
        left, top = (
            random.uniform(0, max(side - width, 1e-6)),
            random.uniform(0, max(side - height, 1e-6)),
        )
        box = (left, top, left + width, top + height)
        kind = int(random.integers(4))
        if kind == 0:
            pen.ellipse(box, fill=255)
        elif kind == 1:
            pen.rounded_rectangle(box, min(width, height) * random.uniform(0, 0.4), fill=255)
        else:
            count = 48 if kind == 2 else int(random.integers(3, 10))
            angles = (
                np.sort(random.uniform(0, 2 * math.pi, count))
                if kind == 3
                else np.linspace(0, 2 * math.pi, count)
            )
            phases = random.uniform(0, 2 * math.pi, 4)
            wave = sum(
                math.sqrt(random.random()) / (k + 2) * np.sin((k + 1) * angles + p)
                for k, p in enumerate(phases)
            )
            radius = np.clip(0.75 + 0.35 * wave, 0.2, 1.0)
            x = left + width / 2 * (1 + radius * np.cos(angles))
            y = top + height / 2 * (1 + radius * np.sin(angles))
            pen.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)
    return mask


def draw_object(random: np.random.Generator) -> Object:
    """A cut-out, whose label is its part of Unicode, where neighbors are alike; or a shape, with its surface's."""
    if random.random() < 0.6:
        glyphs = list_glyphs()
        glyph = glyphs[int(random.integers(len(glyphs)))]
        picture = render(glyph)
        colors = change_colors(random, picture.convert("RGB"))
        if random.random() < 0.15:
            surface, _ = draw_surface(random, picture.size, (0.4, 0.3, 0.3, 0, 0))
            colors = Image.blend(colors, surface, 0.5)
        colors.putalpha(picture.getchannel("A"))
        return Object(colors, f"{ord(glyph) // 16:x}0")
    side = 128
    surface, label = draw_surface(random, (side, side), (0.35, 0.2, 0.15, 0.15, 0.15))
    mask = draw_mask(random, side)
    if random.random() < 0.3:
        # An outline, as many things have.
        inner = mask.filter(ImageFilter.MinFilter(5))
        surface.paste(draw_color(random), mask=ImageChops.subtract(mask, inner))
    surface.putalpha(mask)
    return Object(surface, label)


def place_object(
    random: np.random.Generator, picture: Image.Image, size: float
) -> tuple[Image.Image, tuple[int, int]] | None:
    """Turn, flip and scale a picture, and draw its place; None where nothing of it would be seen."""
    picture = picture.rotate(random.uniform(-30, 30), Image.Resampling.BICUBIC, expand=True)
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stretch = math.exp(random.uniform(-0.25, 0.25))
    scale = size / max(picture.size)
    extents = (round(picture.width * scale * stretch), round(picture.height * scale / stretch))
    picture = picture.resize([min(max(2, n), SIDE) for n in extents], Image.Resampling.BILINEAR)
    seen = picture.getchannel("A").point(lambda value: 255 * (value > 64)).getbbox()
    if seen is None:
        return None
    picture = picture.crop(seen)
    left, top = (int(random.integers(0, SIDE - n + 1)) for n in picture.size)
    return picture, (left, top)


def paste(
    random: np.random.Generator, scene: Image.Image, picture: Image.Image, place: tuple[int, int]
) -> None:
    """Paste a picture, often with a shadow, sometimes soft at its edge or a little transparent."""
    alpha = picture.getchannel("A")
    if random.random() < 0.3:
        strength = random.uniform(0.3, 0.7)
        shadow = alpha.filter(ImageFilter.GaussianBlur(random.uniform(1, 4))).point(
            lambda value: int(value * strength)
        )
        offset = random.uniform(-0.12, 0.12, 2) * max(picture.size)
        scene.paste(
            (0, 0, 0), tuple(int(p + o) for p, o in zip(place, offset, strict=True)), shadow
        )
    if random.random() < 0.4:
        alpha = alpha.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.5)))
    if random.random() < 0.2:
        share = random.uniform(0.7, 1.0)
        alpha = alpha.point(lambda value: int(value * share))
    scene.paste(picture.convert("RGB"), place, alpha)


def draw_scene(random: np.random.Generator) -> Scene:
    """Objects on a ground; those are left out that would hide another, or be hidden."""
    scene, _ = draw_surface(random, (SIDE, SIDE), (0.5, 0.2, 0.1, 0.1, 0.1))
    is_crowd = random.random() < 0.15
    number = int(random.integers(10, CROWD + 1)) if is_crowd else int(random.integers(1, MOST + 1))
    shared = draw_object(random) if is_crowd else None
    low, high = (SIZES[0], 60) if is_crowd else SIZES
    middle = math.exp(random.uniform(math.log(low), math.log(high)))
    owner = np.full((SIDE, SIDE), -1, np.int64)
    boxes: list[Box] = []
    areas: list[int] = []
    for _ in range(number):
        size = (
            middle * math.exp(random.uniform(-0.2, 0.2))
            if is_crowd
            else math.exp(random.uniform(math.log(low), math.log(high)))
        )
        drawn = shared or draw_object(random)
        placed = place_object(random, drawn.picture, size)
        if placed is None:
            continue
        picture, (left, top) = placed
        mask = np.asarray(picture.getchannel("A")) > 64
        box = Box(left, top, left + picture.width, top + picture.height, drawn.label)
        trial = owner.copy()
        trial[box.top : box.bottom, box.left : box.right][mask] = len(boxes)
        visible = np.bincount(trial[trial >= 0], minlength=len(boxes) + 1)
        if (visible < SEEN * np.array([*areas, mask.sum()])).any():
            continue
        owner = trial
        boxes.append(box)
        areas.append(int(mask.sum()))
        paste(random, scene, picture, (left, top))
    if random.random() < 0.2:
        scene = scene.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.2)))
    return Scene(scene, boxes)


def write_part(folder: Path, seed: int, numbers: range) -> list[list[Box]]:
    """Write scenes of these numbers, and return their boxes; each depends on seed and number alone."""
    boxes = []
    for number in numbers:
        random = np.random.default_rng([seed, number])
        scene = draw_scene(random)
        quality = int(random.integers(60, 96))
        scene.pixels.save(folder / f"{number:06d}.jpg", quality=quality)
        boxes.append(scene.boxes)
    return boxes


def list_labels() -> list[str]:
    return [*SURFACES, *sorted({f"{ord(glyph) // 16:x}0" for glyph in list_glyphs()})]


def list_annotations(scenes: list[list[Box]]) -> Iterator[dict[str, object]]:
    ids = {label: number for number, label in enumerate(list_labels(), start=1)}
    for image, boxes in enumerate(scenes):
        for left, top, right, bottom, label in boxes:
            width, height = right - left, bottom - top
            yield {
                "image_id": image,
                "category_id": ids[label],
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": 0,
            }


def write_split(folder: Path, seed: int, count: int) -> None:
    folder.mkdir(parents=True)
    parts = [range(first, min(first + 50, count)) for first in range(0, count, 50)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        made = pool.map(functools.partial(write_part, folder, seed), parts)
        scenes = [boxes for part in made for boxes in part]
    images = [
        {"id": n, "file_name": f"{n:06d}.jpg", "height": SIDE, "width": SIDE} for n in range(count)
    ]
    annotations = [{"id": n} | entry for n, entry in enumerate(list_annotations(scenes))]
    content = {
        "images": images,
        "categories": [{"id": n, "name": v} for n, v in enumerate(list_labels(), start=1)],
        "annotations": annotations,
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_split(options.out / "train", options.seed, options.count)
    write_split(options.out / "val", options.seed + 1, max(8, options.count // 50))
    points = [f"{ord(glyph):x}" for glyph in list_glyphs()]
    (options.out / "glyphs.json").write_text(json.dumps(points), encoding="utf-8")


if __name__ == "__main__":
    main()
