"""Folders of images named by class, made to order."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vfm.data.synthetic import draw_shape, name_classes


def write_image_folder(
    root: str | Path,
    *,
    num_classes: int = 3,
    images_per_class: int = 8,
    size: tuple[int, int] | Sequence[tuple[int, int]] = (32, 32),
    seed: int = 0,
    splits: Sequence[str] | None = None,
    suffix: str = ".png",
) -> Path:
    """Write a tree of class folders with coloured shapes.

    Args:
        root: Where to; made if missing.
        num_classes: Number of class folders.
        images_per_class: In each class folder.
        size: Height and width in pixels, or several of these that take turns.
        seed: Of the images.
        splits: Names of split folders, each with all classes; none by default.
        suffix: Format of the files, as Pillow knows it.

    Returns:
        The root.
    """
    root = Path(root)
    sizes = cycle(_sizes(size))
    for part, split in enumerate(splits or [""]):
        for label, name in enumerate(name_classes(num_classes)):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(images_per_class):
                image = draw_shape(label, num_classes, next(sizes), (seed, part, label, index))
                Image.fromarray(image).save(folder / f"{index:04d}{suffix}")
    return root


def deepen_images(source: Path, target: Path) -> Path:
    """Write the PNG images of a folder with 12 bits a value in files of 16, below another folder; return that."""
    for path in source.rglob("*.png"):
        pixels = cv2.imread(str(path)).astype(np.uint32)
        deep = target / path.relative_to(source)
        deep.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(deep), ((pixels * 4095 + 127) // 255).astype(np.uint16))
    return target


def _sizes(size: tuple[int, int] | Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    if isinstance(size[0], int):
        height, width = size
        return [(int(height), int(width))]  # type: ignore[arg-type]
    return size  # type: ignore[return-value]
