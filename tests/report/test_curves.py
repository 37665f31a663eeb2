import importlib
import io

import numpy as np
import pytest
from PIL import Image

from vfm.report import Curve, curves

LINE = [(0.0, 0.0), (0.2, 0.8), (1.0, 1.0)]


def classes(count):
    return {f"class {k}": Curve(LINE, LINE, 0.9, 1 - k / 100) for k in range(count)}


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_two_panels_in_the_colours_of_the_classes():
    pixels = opened(curves(classes(2)))
    assert pixels.shape[1] > 1.7 * pixels.shape[0]
    for colour in ((0, 114, 178), (213, 94, 0)):
        where = np.flatnonzero((pixels == colour).all(-1).any(0))
        assert where.min() < 0.4 * pixels.shape[1]
        assert where.max() > 0.55 * pixels.shape[1]


def test_best_and_worst_of_many(monkeypatch):
    home = importlib.import_module("vfm.report.curves")
    drawn = []
    original = home._line

    def line(axes, points, label, style):
        drawn.append(label)
        original(axes, points, label, style)

    monkeypatch.setattr(home, "_line", line)
    curves(classes(30))
    names = {label.split("  ")[0] for label in drawn}
    assert names == {f"class {k}" for k in (0, 1, 2, 3, 4, 25, 26, 27, 28, 29)}


def test_names_with_dollars_and_underscores_are_drawn():
    odd = {"_$a_{b": Curve(LINE, LINE, 0.5, 0.5)}
    assert opened(curves(odd)).size


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="There is no curve to draw"):
        curves({})
