import importlib
import io

import numpy as np
import pytest
from PIL import Image

from vfm.report import Curve, plot_curves

LINE = [(0.0, 0.0), (0.2, 0.8), (1.0, 1.0)]


def classes(count):
    return {f"class {k}": Curve(LINE, LINE, 0.9, 1 - k / 100) for k in range(count)}


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_two_panels_in_the_colours_of_the_classes():
    pixels = opened(plot_curves(classes(2)))
    assert pixels.shape[1] > 1.7 * pixels.shape[0]
    for colour in ((0, 114, 178), (213, 94, 0)):
        where = np.flatnonzero((pixels == colour).all(-1).any(0))
        assert where.min() < 0.4 * pixels.shape[1]
        assert where.max() > 0.55 * pixels.shape[1]


def drawn(monkeypatch, classes):
    """The figure, before it becomes pixels."""
    home = importlib.import_module("vfm.report.curves")
    figures = []
    monkeypatch.setattr(home, "encode_png", figures.append)
    plot_curves(classes)
    return figures[0]


def names(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_legends_give_the_values(monkeypatch):
    left, right = drawn(monkeypatch, {"a": Curve(LINE, LINE, 0.25, 0.75)}).axes
    assert names(left) == ["a  0.250"]
    assert names(right) == ["a  0.750"]


def test_best_and_worst_of_many(monkeypatch):
    figure = drawn(monkeypatch, classes(30))
    shown = [name.split("  ")[0] for name in names(figure.axes[1])]
    assert shown == [f"class {k}" for k in (0, 1, 2, 3, 4, 25, 26, 27, 28, 29)]
    assert (
        figure.get_suptitle() == "the best and the worst five of 30 classes, by average precision"
    )
    assert drawn(monkeypatch, classes(10)).get_suptitle() == ""


@pytest.mark.filterwarnings("error")
def test_names_with_dollars_and_underscores_are_drawn(monkeypatch):
    odd = {"_$a_{b": Curve(LINE, LINE, 0.5, 0.5)}
    assert opened(plot_curves(odd)).size
    assert names(drawn(monkeypatch, odd).axes[0]) == ["_$a_{b  0.500"]


def test_legends_cover_no_curve_and_panels_are_square(monkeypatch):
    figure = drawn(monkeypatch, classes(10))
    figure.canvas.draw()
    for axes in figure.axes:
        panel, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
        assert panel.width == pytest.approx(panel.height)
        assert 0 <= legend.y0 < legend.y1 < panel.y0
        assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="There is no curve to draw"):
        plot_curves({})
