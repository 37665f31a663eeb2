import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from vfm.data.synthetic import draw_shape
from vfm.data.transforms import TrainTransform
from vfm.preprocess import Preprocess

SMALL = Preprocess(size=(24, 40))

SCRIPT = """
import hashlib
from vfm.data.synthetic import draw_shape
from vfm.data.transforms import TrainTransform
from vfm.preprocess import Preprocess
transform = TrainTransform({augment!r}, Preprocess(size=(24, 40)))
image = draw_shape(1, 4, (60, 50), (0,))
pixels = b"".join(transform(image, seed).tobytes() for seed in range(10))
print(hashlib.sha256(pixels).hexdigest())
"""


@pytest.fixture
def image():
    return draw_shape(1, 4, (60, 50), (0,))


@pytest.mark.parametrize("augment", ["none", "light", "standard", "strong"])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (61, 37), (37, 200)])
def test_result_is_uint8_of_the_model_size(augment, size):
    image = draw_shape(0, 2, size, (1,))
    pixels = TrainTransform(augment, SMALL)(image, 5)
    assert pixels.shape == (24, 40, 3)
    assert pixels.dtype == np.uint8


def test_none_is_the_resize_alone(image):
    pixels = TrainTransform("none", SMALL)(image, 5)
    np.testing.assert_array_equal(pixels, SMALL.resize(image)[0])


@pytest.mark.parametrize("augment", ["light", "standard", "strong"])
def test_result_depends_on_image_and_seed_alone(image, augment):
    transform = TrainTransform(augment, SMALL)
    first = [transform(image, seed) for seed in range(5)]
    again = [transform(image, seed) for seed in reversed(range(5))][::-1]
    copy = pickle.loads(pickle.dumps(transform))
    np.random.seed(0)
    for seed in range(5):
        np.testing.assert_array_equal(first[seed], again[seed])
        np.testing.assert_array_equal(first[seed], copy(image, seed))
    assert not np.array_equal(first[0], first[1])


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["standard"])
def test_another_process_gives_the_same(image, augment):
    transform = TrainTransform(augment, SMALL)
    pixels = b"".join(transform(image, seed).tobytes() for seed in range(10))
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(augment=augment)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert result.stdout.strip() == hashlib.sha256(pixels).hexdigest()


def test_image_is_left_as_it_is(image):
    before = image.copy()
    TrainTransform("standard", SMALL)(image, 3)
    np.testing.assert_array_equal(image, before)


def test_light_never_mirrors():
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, :20] = 255
    transform = TrainTransform("light", Preprocess(size=(40, 40)))
    for seed in range(50):
        pixels = transform(image, seed)
        assert pixels[:, :10].mean() > 240
        assert pixels[:, 30:].mean() < 15


def test_mirror_and_colour_are_drawn_independently():
    # albumentations' own per-call seed gives all transforms equal draws: mirrored images would
    # always be jittered, and the size of the crop would set the brightness.
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, :20] = 100
    transform = TrainTransform("standard", Preprocess(size=(40, 40)))
    results = [transform(image, seed) for seed in range(400)]
    mirrored = np.array([r[:, :5].mean() < r[:, -5:].mean() for r in results])
    jittered = np.array([r.max() != 100 for r in results])
    assert 0.4 < mirrored.mean() < 0.6
    assert 0.7 < jittered.mean() < 0.9
    assert abs(jittered[mirrored].mean() - jittered[~mirrored].mean()) < 0.15


@pytest.mark.parametrize("augment", ["none", "light", "standard", "strong"])
def test_the_border_is_cut_off_once(augment):
    """A model that crops its input must not crop what was cropped for training."""
    preprocess = Preprocess(size=(32, 32), crop_fraction=0.875)
    whole = Preprocess(size=(32, 32), crop_fraction=1.0)
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    transform = TrainTransform(augment, preprocess)
    if augment == "none":
        assert np.array_equal(transform(image, 0), preprocess.resize(image)[0])
    elif augment != "light":
        # A random crop takes no notice of the fraction.
        assert np.array_equal(transform(image, 7), TrainTransform(augment, whole)(image, 7))


def test_a_pipeline_without_a_resize_is_followed_by_the_models():
    preprocess = Preprocess(size=(32, 32), crop_fraction=0.875)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mirrored = TrainTransform([{"HorizontalFlip": {"p": 1.0}}], preprocess)(image, 0)
    assert np.array_equal(mirrored, preprocess.resize(np.ascontiguousarray(image[:, ::-1]))[0])
