"""Plots decode as PNG of the expected size, show something, and leave pyplot alone."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from vfm_runtime.errors import DataError

from vfm.report import (
    plot_bars,
    plot_confusion_matrix,
    plot_intervals,
    plot_learning_curves,
)

CURVE = [(step, 1 / (1 + step)) for step in range(0, 100, 10)]


def _pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    pixels = np.asarray(image.convert("RGB"))
    border = np.concatenate([pixels[[0, -1]].reshape(-1, 3), pixels[:, [0, -1]].reshape(-1, 3)])
    assert (border == 255).all(), "the background is not white, or a label runs off the edge"
    assert len(np.unique(pixels @ (65536, 256, 1))) > 10, "the plot is blank"
    return pixels


def test_learning_curves_stand_side_by_side() -> None:
    one = _pixels(plot_learning_curves({"loss": {"train": CURVE}}, xlabel="step"))
    panels = {"loss": {"train": CURVE, "val": CURVE[::2]}, "accuracy": {"val": CURVE}}
    two = _pixels(plot_learning_curves(panels, xlabel="step"))
    assert one.shape[0] == two.shape[0]
    assert two.shape[1] > one.shape[1]


def test_a_name_keeps_its_colour_in_every_panel() -> None:
    # "val" alone in its panel is drawn in the second colour, #D55E00, as beside "train".
    panels = {"loss": {"train": CURVE}, "accuracy": {"val": CURVE}}
    pixels = _pixels(plot_learning_curves(panels, xlabel="step"))
    orange = (pixels == (0xD5, 0x5E, 0x00)).all(axis=2)
    assert not orange[:, : pixels.shape[1] // 2].any()
    assert orange[:, pixels.shape[1] // 2 :].any()


@pytest.mark.parametrize("name", ["_hidden", "$\\frac$", "<script>", "many words " * 20])
def test_odd_names_are_drawn_as_they_are(name: str) -> None:
    _pixels(plot_learning_curves({name: {name: [(0, np.nan), (1, 2)], "none": []}}, xlabel=name))
    _pixels(plot_confusion_matrix([[1, 0], [2, 3]], [name, "b"]))
    _pixels(plot_bars({name: 1.0}, name))


@pytest.mark.parametrize(
    ("num_classes", "normalize"), [(1, True), (10, False), (20, True), (50, True), (60, False)]
)
def test_confusion_matrix_for_few_and_many_classes(num_classes: int, normalize: bool) -> None:
    matrix = np.diag(np.arange(num_classes)) + np.eye(num_classes, k=1, dtype=int)
    labels = [f"class {index}" for index in range(num_classes)]
    pixels = _pixels(plot_confusion_matrix(matrix, labels, normalize=normalize))
    assert 600 < pixels.shape[0] <= 9.5 * 144


def test_bars_grow_with_their_number() -> None:
    few = _pixels(plot_bars({"a": 1.0, "b": 0.0}, "ms"))
    many = _pixels(plot_bars({str(index): 1.0 for index in range(20)}, "ms"))
    assert few.shape == (round((0.9 + 2 * 0.36) * 144), 7 * 144, 3)
    assert many.shape[0] > few.shape[0]


def test_same_data_same_bytes() -> None:
    assert plot_bars({"a": 1.0}, "ms") == plot_bars({"a": 1.0}, "ms")


def test_pyplot_is_not_imported() -> None:
    code = "import sys, vfm.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no series to plot in the panels \['loss'"):
        plot_learning_curves({"loss": {}}, xlabel="step")


def test_intervals_are_drawn_each_in_its_color() -> None:
    points = {"_quick": (0.02, 0.7, 0.6, 0.8), "slow": (3.0, 0.75, 0.75, 0.9)}
    pixels = _pixels(plot_intervals(points, xlabel="minutes", ylabel="accuracy"))
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (pixels == color).all(axis=2).any()
    with pytest.raises(DataError, match="There is no interval to plot"):
        plot_intervals({}, xlabel="minutes", ylabel="accuracy")


def test_intervals_of_lines_are_bands():
    line = [(1.0, 0.5, 0.4, 0.6), (2.0, 0.7, 0.6, 0.8), (16.0, 0.8, 0.7, 0.9)]
    with_bands = plot_learning_curves({"accuracy": {"mean": line}}, xlabel="examples", log_x=True)
    bare = [point[:2] for point in line]
    assert with_bands != plot_learning_curves(
        {"accuracy": {"mean": bare}}, xlabel="examples", log_x=True
    )
