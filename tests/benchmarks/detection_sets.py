"""Sets of scenes with boxes for the benchmarks of detection: cut-outs, clothes, aerial photos, and rare classes.

    from detection_sets import write_set
    root = write_set("glyphs", folder)

- glyphs: cut-outs rendered from a font of pictures, ten classes by what they show, on photos; objects and photos of the
  test are unseen in training (Debian's fonts-noto-color-emoji).
- clothes: items of Fashion-MNIST, ten kinds, on photos (Debian's dataset-fashion-mnist).
- rare: glyphs of which the most frequent class has a hundred times the boxes of the rarest; the test has equally many
  of each.
- trees: aerial photos, one class (package deepforest).
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detection_scenes import scenes_of
from fashion_mnist import NAMES
from PIL import Image, ImageDraw, ImageFont
from scenes import GROUNDS, ground, piece
from small_sets import EMOJI_KINDS, FONT
from vfm_runtime.tasks.detection import compute_iou

from tests.data.box_writing import Drawn, write_coco

SIDE, SIZES, MOST = 320, (40, 130), 6
OVERLAP = 0.15
RATIO = 100
"""Boxes of the most frequent class of the set `rare` for one of its rarest."""
COUNTS = {"train": 400, "val": 40, "test": 150}
TREES = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2",),
    "test": ("2019_YELL_2_541000_4977000_image_crop", "OSBS_029"),
}
SETS = ("glyphs", "trees", "clothes", "rare")


@functools.cache
def render(glyph: str) -> Image.Image:
    font = ImageFont.truetype(FONT, 109)
    picture = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(picture).text((0, 0), glyph, font=font, embedded_color=True)
    return picture.crop(picture.getbbox())


def share_glyphs(split: str) -> dict[str, list[str]]:
    """The glyphs of each class that a split may show: six of ten are for training."""
    shares = {"train": (0.0, 0.6), "val": (0.6, 0.7), "test": (0.7, 1.0)}
    first, last = shares[split]
    glyphs = {}
    for kind, text in EMOJI_KINDS.items():
        order = np.random.default_rng(0).permutation(len(text))
        part = order[round(first * len(text)) : round(last * len(text))]
        glyphs[kind] = [text[index] for index in part]
    return glyphs


def paste_glyph(
    scene: Image.Image, glyph: str, others: list[tuple[int, ...]], random: np.random.Generator
) -> tuple[int, ...] | None:
    """Paste a glyph of random size, turn and place, and return its box; None where it would hide another."""
    picture = render(glyph).rotate(random.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = int(random.integers(*SIZES)) / max(picture.size)
    picture = picture.resize([max(1, round(n * scale)) for n in picture.size])
    seen = picture.getchannel("A").point(lambda value: 255 * (value > 64)).getbbox()
    if seen is None:
        return None
    picture = picture.crop(seen)
    left, top = (int(random.integers(0, SIDE - n + 1)) for n in picture.size)
    box = (left, top, left + picture.width, top + picture.height)
    if (
        compute_iou(np.array([box], float), np.array(others, float).reshape(-1, 4)).max(initial=0)
        > OVERLAP
    ):
        return None
    scene.paste(picture, (left, top), picture)
    return box


def glyph_scenes(
    split: str,
    count: int,
    random: np.random.Generator,
    *,
    is_rare: bool = False,
    kinds: Sequence[str] = tuple(EMOJI_KINDS),
) -> list[Drawn]:
    """Scenes of one to six glyphs on photos.

    Args:
        split: `train`, `val` or `test`.
        count: Number of scenes.
        random: Draws everything.
        is_rare: Whether classes differ by up to RATIO in their number of boxes, but for the test.
        kinds: Classes that they show.
    """
    glyphs = share_glyphs(split)
    weights = np.ones(len(kinds))
    if is_rare and split != "test":
        weights = RATIO ** -np.linspace(0, 1, len(kinds))
    grounds = {name: ground(name) for name in GROUNDS[split]}
    drawn = []
    for number in range(count):
        scene = piece(random, grounds[GROUNDS[split][number % len(grounds)]], SIDE)
        boxes: list[tuple[int, ...]] = []
        labels: list[str] = []
        for _ in range(int(random.integers(1, MOST + 1))):
            kind = kinds[int(random.choice(len(kinds), p=weights / weights.sum()))]
            box = paste_glyph(
                scene, glyphs[kind][int(random.integers(len(glyphs[kind])))], boxes, random
            )
            if box is not None:
                boxes.append(box)
                labels.append(kind)
        corners = np.array(boxes, np.float32).reshape(-1, 4)
        drawn.append(Drawn(f"{split}{number:05d}.jpg", np.asarray(scene), corners, labels))
    return drawn


def write_set(name: str, root: Path, scale: int = 1) -> Path:
    """Write a set, once.

    Args:
        name: One of SETS.
        root: Folder, of which the set gets one of its name.
        scale: One in so many scenes is written.
    """
    folder = root / name
    if folder.is_dir():
        return folder
    partial = root / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if name == "trees":
        write_trees(partial)
    else:
        random = np.random.default_rng(0)
        counts = {split: count // scale for split, count in COUNTS.items()}
        if name == "clothes":
            scenes = {split: scenes_of(split, count, random) for split, count in counts.items()}
        else:
            scenes = {
                split: glyph_scenes(split, count, random, is_rare=name == "rare")
                for split, count in counts.items()
            }
        write_coco(partial, scenes, NAMES if name == "clothes" else list(EMOJI_KINDS))
    partial.rename(folder)
    return folder


def write_trees(root: Path) -> None:
    """The photos and their XML files, a split each."""
    source = Path(__file__).parents[2] / ".cache/assets/deepforest/deepforest/data"
    if not source.is_dir():
        raise SystemExit("The photos are missing. Run: python tests/fetch_assets.py")
    for split, names in TREES.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            for suffix in (".png", ".xml"):
                shutil.copy(source / (name + suffix), root / split)
