"""Where the pixels of the input lie in the original: Python, the graph, and the pixels themselves say the same."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from vfm.preprocess import Fit, Preprocess

SIZES = [(40, 90), (90, 40), (300, 200), (64, 96), (1, 7), (501, 33)]


def session(preprocess: Preprocess) -> onnxruntime.InferenceSession:
    graph = preprocess.build_graph(geometry=True).SerializeToString()
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("fraction", [1.0, 0.875])
def test_graph_and_python_say_the_same(fit: Fit, fraction: float) -> None:
    preprocess = Preprocess(size=(64, 96), fit=fit, crop_fraction=fraction)
    graph = session(preprocess)
    for height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels, row = graph.run(["pixels", "geometry"], {"image": image})
        resized, geometry = preprocess.resize(image)
        np.testing.assert_array_equal(pixels[0], resized)
        assert row.dtype == np.float32
        np.testing.assert_allclose(row, [geometry.to_row(preprocess.size)], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
def test_a_block_lies_where_its_box_says(fit: Fit) -> None:
    preprocess = Preprocess(size=(128, 160), fit=fit, mean=(0.0, 0.0, 0.0))
    image = np.zeros((200, 400, 3), np.uint8)
    corners = np.array([[180, 80, 240, 130]], np.float32)
    image[80:130, 180:240] = 255
    pixels, geometry = preprocess.resize(image)
    (x, y, w, h) = geometry.to_fractions(corners, preprocess.size)[0] * [160, 128, 160, 128]
    rows, columns = (np.flatnonzero((pixels[..., 0] > 128).any(axis)) for axis in (1, 0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose([x - w / 2, y - h / 2, x + w / 2, y + h / 2], seen, atol=1)


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
def test_shares_and_back(fit: Fit) -> None:
    preprocess = Preprocess(size=(64, 96), fit=fit)
    geometry = preprocess.compute_geometry(123, 457)
    left, top, width, height, *whole = geometry.to_row(preprocess.size)
    assert whole == [457.0, 123.0]
    (x, y, w, h) = geometry.to_fractions(
        np.array([[100, 20, 200, 90]], np.float32), preprocess.size
    )[0]
    corners = [
        left + (x - w / 2) * width,
        top + (y - h / 2) * height,
        left + (x + w / 2) * width,
        top + (y + h / 2) * height,
    ]
    np.testing.assert_allclose(corners, [100, 20, 200, 90], atol=1e-3)


def test_without_boxes_the_graph_gives_pixels_alone() -> None:
    graph = Preprocess(size=(8, 8)).build_graph()
    assert [output.name for output in graph.graph.output] == ["pixels"]
