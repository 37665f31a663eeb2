from __future__ import annotations

import numpy as np
import pytest

from vfm.data.crop import RandomCrop
from vfm.data.decode import Source


def boxes(crop, height, width, count=400):
    return [crop.draw_box(height, width, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize("size", [(480, 640), (97, 31), (1, 1), (3, 2000)])
def test_boxes_lie_inside_the_image(size):
    for top, left, height, width in boxes(RandomCrop((8, 8)), *size):
        assert 0 <= top <= top + height <= size[0]
        assert 0 <= left <= left + width <= size[1]
        assert min(height, width) >= 1


def test_area_and_ratio_are_as_asked():
    found = np.array(boxes(RandomCrop((8, 8), scale=(0.2, 0.6), ratio=(0.5, 2)), 400, 500))
    area = found[:, 2] * found[:, 3] / (400 * 500)
    ratio = found[:, 3] / found[:, 2]
    assert 0.19 < area.min() < 0.25
    assert 0.5 < area.max() < 0.61
    assert 0.49 < ratio.min() < 0.6
    assert 1.7 < ratio.max() < 2.05
    assert abs(np.log(ratio).mean()) < 0.1  # wide and tall alike


def test_a_coarser_image_gives_the_same_part(tmp_path):
    from PIL import Image

    y, x = np.mgrid[:400, :600]
    picture = np.stack([y * 255 / 400, x * 255 / 600, 0 * x], -1).astype(np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).save(path, quality=98)
    crop = RandomCrop((24, 24), scale=(0.3, 1.0))
    for seed in range(20):
        fine = crop(Source.open(picture), np.random.default_rng(seed)).astype(int)
        coarse = crop(Source.open(str(path)), np.random.default_rng(seed)).astype(int)
        assert np.abs(fine - coarse).max() < 14
        assert np.abs(fine - coarse).mean() < 3


def test_whole_image_when_asked_for():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    crop = RandomCrop((40, 60), scale=(1, 1), ratio=(1.5, 1.5))
    assert np.array_equal(crop(Source.open(image), np.random.default_rng(0)), image)


@pytest.mark.parametrize("scale", [(0, 1), (0.5, 0.4), (0.5, 1.5)])
def test_scale_out_of_range(scale):
    with pytest.raises(ValueError, match=r"RandomResizedCrop's scale is .* above 0, at most 1"):
        RandomCrop((8, 8), scale=scale)


def test_ratio_out_of_range():
    with pytest.raises(ValueError, match=r"RandomResizedCrop's ratio is \[0, 1\]"):
        RandomCrop((8, 8), ratio=(0, 1))
