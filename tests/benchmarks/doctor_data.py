"""Data for the benchmark of `vfm doctor`: tiles of packaged photos and frames of clips with planted leaks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detection_sets import render
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
TILE = 160
PHOTOS = (
    *(
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "grass.png",
    ),
    *(
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "page.png",
    ),
    *("retina.jpg", "rocket.jpg", "text.png", "china.jpg", "flower.jpg"),
)
CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
KINDS = ("exact", "encoded", "cropped", "mirrored")


class Planted(NamedTuple):
    """Folder of images in train/ and test/ with planted leaks."""

    folder: Path
    origin: dict[str, str]
    """Photo or clip that each image is of, by its name below the folder."""
    copies: dict[str, tuple[str, str]]
    """Name of the original and kind, by the name of each planted copy."""


def read_photos() -> dict[str, Pixels]:
    """Photos that scikit-image and scikit-learn carry in their packages."""
    import skimage
    import sklearn

    folders = (
        Path(skimage.__file__).parent / "data",
        Path(sklearn.__file__).parent / "datasets/images",
    )
    paths = [folder / name for folder in folders for name in PHOTOS if (folder / name).is_file()]
    assert len(paths) == len(PHOTOS)
    return {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in paths}


def cut_tiles(photo: Pixels) -> list[Pixels]:
    """Tiles side by side, which share no pixel."""
    height, width = photo.shape[:2]
    return [
        photo[top : top + TILE, left : left + TILE]
        for top in range(0, height - TILE + 1, TILE)
        for left in range(0, width - TILE + 1, TILE)
    ]


def draw_objects(count: int, side: int = 200) -> dict[str, list[Pixels]]:
    """Glyphs of different objects on white, of any size and anywhere, by the number of their character."""
    random = np.random.default_rng(0)
    drawn: dict[str, list[Pixels]] = {}
    for code in range(0x1F300, 0x1F6D0):
        glyph = render(chr(code))
        if len(drawn) < count and glyph.getbbox() is not None:
            scale = random.uniform(0.4, 1.3)
            glyph = glyph.resize([max(8, round(scale * length)) for length in glyph.size])
            ground = Image.new("RGB", (side, side), "white")
            spot = [int(random.integers(0, max(1, side - length))) for length in glyph.size]
            ground.paste(glyph, spot, glyph)
            drawn[f"{code:x}"] = [np.asarray(ground)]
    return drawn


def plant_leaks(
    folder: Path, pictures: Mapping[str, list[Pixels]], num_each: int, seed: int = 0
) -> Planted:
    """Write pictures as PNG into train/, and copies of some of them into test/ beside others that are not copied.

    A picture of every four goes to test/ itself; copies are of pictures in train/.

    Args:
        folder: Folder to write.
        pictures: Pictures by photo or clip.
        num_each: Copies of each kind.
        seed: Seed of the draw.
    """
    random = np.random.default_rng(seed)
    origin, train = {}, []
    for group, members in pictures.items():
        for number, pixels in enumerate(members):
            split = "test" if number % 4 == 3 else "train"
            name = f"{split}/{'a' if number % 2 else 'b'}/{group}_{number:03d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
            origin[name] = group
            if split == "train":
                train.append((name, pixels))
    chosen = random.permutation(len(train))[: num_each * len(KINDS)]
    copies = {}
    for turn, index in enumerate(chosen.tolist()):
        kind = KINDS[turn % len(KINDS)]
        source, pixels = train[index]
        name = source.replace("train/", "test/").removesuffix(".png") + f"_{kind}.png"
        picture = Image.fromarray(pixels)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if kind == "cropped":
            picture = crop_randomly(picture, random)
        elif kind == "mirrored":
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if kind == "encoded":
            name = name.replace(".png", ".jpg")
            size = tuple(round(side * random.uniform(0.5, 1.0)) for side in picture.size)
            picture.resize(size, Image.Resampling.BICUBIC).save(
                folder / name, quality=int(random.integers(40, 90))
            )
        elif kind == "exact":
            (folder / name).write_bytes((folder / source).read_bytes())
        else:
            name = name.replace(".png", ".jpg")
            picture.save(folder / name, quality=int(random.integers(60, 95)))
        copies[name] = (source, kind)
        origin[name] = origin[source]
    return Planted(folder, origin, copies)


def crop_randomly(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Crop 60 to 90 % of the area, of a shape a little other than the whole, and bring it back to the size."""
    side = np.sqrt(random.uniform(0.6, 0.9))
    shape = np.sqrt(random.uniform(0.9, 1.1))
    width, height = picture.size
    size = np.minimum([width * side * shape, height * side / shape], [width, height])
    left, top = (
        random.uniform(0, whole - part) for whole, part in zip(picture.size, size, strict=True)
    )
    box = (left, top, left + size[0], top + size[1])
    return picture.resize(picture.size, Image.Resampling.BICUBIC, box=box)


def plant_box_errors(
    boxes: list[tuple[int, list[float], int]], num_labels: int, fraction: float, seed: int
) -> tuple[list[tuple[int, list[float], int]], list[tuple[int, list[float], str]]]:
    """Leave out, move or rename a fraction of boxes, a third each.

    Args:
        boxes: Image, corners in pixels and class of each.
        num_labels: Number of classes.
        fraction: Part of them that is changed.
        seed: Draws which, and how.

    Returns:
        The boxes that stay, and of each change the image, the corners of the object, and what was done.
    """
    random = np.random.default_rng(seed)
    number = max(3, round(fraction * len(boxes)))
    chosen = random.permutation(len(boxes))[:number].tolist()
    given, planted = list(boxes), []
    for turn, index in enumerate(chosen):
        image, corners, label = boxes[index]
        problem = ("missing", "shifted", "class")[turn % 3]
        planted.append((image, corners, problem))
        if problem == "class":
            given[index] = image, corners, int(label + random.integers(1, num_labels)) % num_labels
        elif problem == "shifted":
            left, top, right, bottom = corners
            width, height = right - left, bottom - top
            # By 30 to 60 % of a side, which leaves half or less of what both cover.
            across, down = random.choice([-1, 1], 2) * random.uniform(0.3, 0.6, 2)
            moved = [left + across * width, top + down * height]
            given[index] = image, [*moved, moved[0] + width, moved[1] + height], label
    left_out = {index for turn, index in enumerate(chosen) if turn % 3 == 0}
    return [each for index, each in enumerate(given) if index not in left_out], planted
