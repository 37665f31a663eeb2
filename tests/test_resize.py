"""The resize graph against torch's antialiased interpolation in double precision."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vfm.preprocess import Preprocess

SIZES = [(640, 480), (8, 8), (1, 1), (1, 2000), (2000, 10), (301, 127), (192, 224)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_is_the_exact_value_rounded(size, fit, interpolation):
    preprocess = Preprocess((192, 224), fit, 0.9, interpolation)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels, geometry = preprocess.resize(image)
    source = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    height, width = (round(size[0] * geometry.scale_y), round(size[1] * geometry.scale_x))
    top, left = round(geometry.offset_y), round(geometry.offset_x)
    if fit == "crop":
        y, x = (
            round(-geometry.offset_y / geometry.scale_y),
            round(-geometry.offset_x / geometry.scale_x),
        )
        source = source[
            :, :, y : y + round(192 / geometry.scale_y), x : x + round(224 / geometry.scale_x)
        ]
        height, width, top, left = 192, 224, 0, 0
    exact = F.interpolate(source, size=(height, width), mode=interpolation, antialias=True)
    exact = exact.clamp(0, 255)[0].permute(1, 2, 0).numpy()
    inside = pixels[top : top + height, left : left + width].astype(float)
    assert inside.shape == exact.shape
    assert np.abs(inside - exact).max() < 0.51
