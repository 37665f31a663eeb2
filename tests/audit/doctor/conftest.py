"""Small photos to look over."""

import warnings

import numpy as np
import pytest
from PIL import Image

warnings.filterwarnings("ignore", message=".*exact copies.*")


def draw_scene(seed, side=96):
    """A picture of blobs at all scales, different for each seed."""
    random = np.random.default_rng(seed)
    scene = np.zeros((side, side, 3))
    for scale in (3, 6, 12, 24):
        grid = random.integers(0, 256, (scale, scale, 3), dtype=np.uint8)
        layer = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)
        scene += np.asarray(layer, float) / 4
    return Image.fromarray(scene.astype(np.uint8))


@pytest.fixture
def scenes(tmp_path):
    """A function that writes pictures, by path below a folder, and returns the folder."""

    def write(pictures):
        for name, picture in pictures.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, **({"quality": 85} if path.suffix == ".jpg" else {}))
        return tmp_path / "data"

    return write
