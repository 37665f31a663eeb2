"""Scenes made of Fashion-MNIST items on real photos, with exact boxes; test scenes have other photos and items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from fashion_mnist import SOURCE
from PIL import Image
from skimage import data as photos
from sklearn.datasets import load_sample_image

from vfm.data.idx import read_idx

GROUNDS = {
    "train": ("chelsea", "coffee", "brick", "grass", "rocket", "china.jpg"),
    "val": ("gravel", "coins"),
    "test": ("flower.jpg", "page", "moon"),
}
# Of the item's own grey values: below it, nothing is seen of it.
_VISIBLE = 32


class Item(NamedTuple):
    """One item, ready to be pasted."""

    pixels: Image.Image
    mask: Image.Image
    place: tuple[int, int]
    box: tuple[int, int, int, int]
    """Left, top, right, bottom of what is seen, in pixels of the scene."""

    def paste(self, scene: Image.Image) -> None:
        # An item covers the ground where it is, and not with the black around it.
        scene.paste(self.pixels, self.place, self.mask)


def ground(name: str) -> Image.Image:
    pixels = load_sample_image(name) if name.endswith(".jpg") else getattr(photos, name)()
    return Image.fromarray(pixels).convert("RGB")


def piece(random: np.random.Generator, photo: Image.Image, side: int) -> Image.Image:
    """A square piece of a photo, resized to `side` pixels."""
    taken = int(random.integers(min(side, min(photo.size) - 1), min(photo.size)))
    left, top = (int(random.integers(extent - taken + 1)) for extent in photo.size)
    return photo.crop((left, top, left + taken, top + taken)).resize((side, side))


def item(random: np.random.Generator, grey: np.ndarray, side: int, sizes: tuple[int, int]) -> Item:
    """An item of random size, colour and place in a scene of `side` pixels."""
    size = int(random.integers(*sizes))
    shape = Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC)
    colour = Image.new("RGB", (size, size), tuple(random.integers(60, 256, 3).tolist()))
    shaded = Image.composite(colour, Image.new("RGB", (size, size)), shape)
    left, top = random.integers(0, side - size + 1, 2).tolist()
    seen = shape.point(lambda value: 255 * (value >= _VISIBLE)).getbbox() or (0, 0, size, size)
    box = (left + seen[0], top + seen[1], left + seen[2], top + seen[3])
    return Item(shaded, shape.point(lambda value: min(255, value * 4)), (left, top), box)


def items_of(split: str) -> tuple[np.ndarray, np.ndarray, range]:
    """Images and kinds of Fashion-MNIST, and which of them a split may use."""
    stem = "t10k" if split == "test" else "train"
    images = read_idx(SOURCE / f"{stem}-images-idx3-ubyte.gz", num_dimensions=3)
    kinds = read_idx(SOURCE / f"{stem}-labels-idx1-ubyte.gz", num_dimensions=1)
    half = len(images) // 2
    pools = {"train": range(half), "val": range(half, len(images)), "test": range(len(images))}
    return images, kinds, pools[split]
