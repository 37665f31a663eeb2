"""Views of images with boxes: the boxes stay where the objects are."""

import numpy as np
import pytest

from vfm.data import SyntheticScenes
from vfm.data.decode import Source
from vfm.data.detection.annotation import Annotation
from vfm.data.detection.dataset import BoxAugment, BoxDataset
from vfm.data.detection.transforms import Geometric, Picture, Region, cut
from vfm.data.records import Record
from vfm.data.transforms import AugmentError
from vfm.preprocess import Preprocess

SIZE = Preprocess(size=(96, 96), fit="squash")
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def picture(height=80, width=120):
    """Three rectangles of pure colours on black, a class each."""
    corners = np.array([[10, 12, 40, 30], [60, 5, 80, 60], [85, 50, 115, 75]], np.float32)
    pixels = np.zeros((height, width, 3), np.uint8)
    for colour, (left, top, right, bottom) in zip(COLOURS, corners.astype(int), strict=True):
        pixels[top:bottom, left:right] = colour
    return Picture(Source.open(pixels), corners, np.arange(3))


def seen(pixels, label):
    """The box around what is of a class's colour."""
    others = [k for k in range(3) if k != label]
    inside = (pixels[..., label] > 128) & (pixels[..., others].max(-1) < 128)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def check(view, tolerance=2.0):
    for box, label in zip(view.corners, view.labels, strict=True):
        found = seen(view.pixels, label)
        assert found is not None
        assert np.abs(found - box).max() <= tolerance, (label, found, box)


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
@pytest.mark.parametrize("seed", range(20))
def test_boxes_follow_the_objects(fit, seed):
    preprocess = Preprocess(size=(96, 128), fit=fit, mean=(0.0, 0.0, 0.0))
    views = Geometric(preprocess, zoom=(0.5, 1.5), flip=0.5)
    view = views.sample_view(picture(), np.random.default_rng(seed))
    assert view.pixels.shape == (96, 128, 3)
    assert len(view.corners)
    check(view)


@pytest.mark.parametrize("seed", range(20))
def test_boxes_follow_the_objects_in_a_mosaic(seed):
    preprocess = Preprocess(size=(128, 128), fit="squash", mean=(0.0, 0.0, 0.0))
    views = Geometric(preprocess, zoom=(1, 1), flip=0.5)
    only = picture()
    empty = Picture(
        Source.open(np.zeros((50, 70, 3), np.uint8)),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
    )
    view = views.sample_mosaic([empty, only, empty, empty], np.random.default_rng(seed))
    check(view)


def test_a_mosaic_shows_all_four():
    views = Geometric(SIZE, zoom=(1, 1), flip=0.0)
    labels = [
        views.sample_mosaic([picture()] * 4, np.random.default_rng(seed)).labels
        for seed in range(10)
    ]
    assert max(len(found) for found in labels) >= 6


def test_a_view_shows_an_object_as_a_whole():
    views = Geometric(SIZE, zoom=(0.3, 0.6), flip=0.0)
    for seed in range(30):
        view = views.sample_view(picture(), np.random.default_rng(seed))
        assert len(view.labels) >= 1


def test_small_rests_of_objects_go():
    view = cut(picture(), Region(36, 0, 40, 40), (40, 40), (0, 0, 0))
    assert 0 not in view.labels  # four of thirty columns are left
    assert 1 in view.labels


def test_ground_beyond_the_image():
    view = cut(picture(), Region(-20, -20, 160, 120), (120, 160), (7, 8, 9))
    assert view.pixels[0, 0].tolist() == [7, 8, 9]
    np.testing.assert_allclose(view.corners, picture().corners + 20)


def records(number=6):
    data = SyntheticScenes(num_images=number * 2, image_size=64)
    data.setup()
    return data.records["train"]


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    made = [BoxDataset(records(), SIZE, augment=BoxAugment(mosaic=0.5), seed=3) for _ in range(2)]
    _ = [made[0][(0, i)] for i in range(6)]
    for index in range(6):
        first, second = (data[(4, index)] for data in made)
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.boxes, second.boxes)
    assert not np.array_equal(made[0][(5, 0)].image, made[0][(4, 0)].image)


def test_the_end_of_training_is_calm():
    augment = BoxAugment(mosaic=1.0, zoom=(0.5, 0.5), flip=0.0, colors="strong")
    data = BoxDataset(records(), SIZE, augment=augment, seed=3, calm_from=10)
    plain = BoxDataset(records(), SIZE)
    calm = data[(10, 2)]
    # The way of training resizes by other code than that of evaluation.
    difference = np.abs(calm.image.astype(int) - plain[2].image).mean()
    assert difference < 6
    np.testing.assert_allclose(calm.boxes, plain[2].boxes, atol=1e-6)
    assert np.abs(data[(9, 2)].image.astype(int) - plain[2].image).mean() > 15


def test_calm_epochs_are_counted_from_the_trainer():
    class Trainer:
        max_epochs, max_steps, accumulate_grad_batches = 40, -1, 1
        global_rank, world_size = 0, 1

    data = SyntheticScenes(num_images=16, augment=BoxAugment(close_mosaic=0.25))
    data.trainer = Trainer()
    assert data._find_calm_epoch(8) == 30
    Trainer.max_steps = 100  # 8 steps of one image... are one epoch
    data.batch_size = 4
    assert data._find_calm_epoch(8) == pytest.approx(0.75 * 100 * 4 / 8)


def test_a_broken_partner_makes_no_mosaic(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")
    bad = Annotation(np.zeros((0, 4), np.float32), np.zeros(0, bool), (64, 64))
    good = records(2)[0]
    data = BoxDataset(
        [good, Record(str(broken), (), "broken.png", objects=bad)],
        SIZE,
        augment=BoxAugment(mosaic=1.0),
    )
    samples = [data[(epoch, 0)] for epoch in range(8)]
    assert all(sample.image.shape == (96, 96, 3) for sample in samples)
    assert "broken" in data[(0, 1)].name


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"mosaic": 2.0}, r"augment\.mosaic is 2\.0\. Give a share, from 0 to 1"),
        (
            {"zoom": (2.0, 1.0)},
            r"augment\.zoom is \[2\.0, 1\.0\]\. Give the least and the greatest",
        ),
        ({"colors": "wild"}, r"augment\.colors is 'wild'\. Choices: none, mild, strong"),
    ],
)
def test_arguments_outside_their_range(arguments, match):
    with pytest.raises(AugmentError, match=match):
        BoxAugment(**arguments)
