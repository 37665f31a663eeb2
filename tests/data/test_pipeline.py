"""Pipelines of the user's own, from YAML."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from PIL import Image

from vfm.data import SyntheticData
from vfm.data.synthetic import draw_shape
from vfm.data.transforms import AugmentError, TrainTransform, check_augment
from vfm.preprocess import Preprocess

SIZE = Preprocess(size=(24, 40))
IMAGE = draw_shape(1, 4, (60, 50), (0,))


def pipeline(text: str) -> list:
    return yaml.safe_load(text)


@pytest.mark.parametrize(
    "text",
    [
        "[HorizontalFlip]",
        "[Resize, {Rotate: {limit: 15, p: 1}}]",
        "[{RandomResizedCrop: {scale: [0.5, 1]}}, HorizontalFlip]",
        "[{OneOf: {transforms: [{GaussianBlur: {p: 1}}, ToGray], p: 1}}]",
        "[{RandomCrop: {height: 20, width: 20}}]",
        "- HorizontalFlip:\n- Affine:\n    rotate: [-5, 5]",
        "[]",
    ],
)
def test_result_has_the_model_size(text):
    pixels = TrainTransform(pipeline(text), SIZE)(IMAGE, 3)
    assert pixels.shape == (24, 40, 3)
    assert pixels.dtype == np.uint8


def test_empty_pipeline_is_the_resize_alone():
    assert np.array_equal(TrainTransform([], SIZE)(IMAGE, 3), SIZE.resize(IMAGE)[0])


def test_pipeline_sees_the_image_as_it_is_unless_it_starts_with_a_resize():
    # A hole of 10 pixels is a sixth of the image before the resize, and a quarter after.
    hole = {
        "CoarseDropout": {
            "num_holes_range": [1, 1],
            "hole_height_range": [10, 10],
            "hole_width_range": [10, 10],
            "fill": 0,
            "p": 1,
        }
    }
    image = np.full((60, 60, 3), 255, np.uint8)
    square = Preprocess(size=(30, 30))
    dark = [
        (TrainTransform(steps, square)(image, 1) < 128).mean()
        for steps in ([hole], ["Resize", hole])
    ]
    assert dark[0] == pytest.approx((5 / 30) ** 2, rel=0.3)
    assert dark[1] == pytest.approx((10 / 30) ** 2, rel=0.1)


def test_crop_inside_a_pipeline_gets_the_model_size():
    steps = [{"OneOf": {"transforms": [{"RandomResizedCrop": {"scale": [0.5, 1]}}], "p": 1}}]
    assert TrainTransform(steps, SIZE)(IMAGE, 3).shape == (24, 40, 3)


def test_jpeg_file_and_its_pixels_give_nearly_the_same(tmp_path):
    y, x = np.mgrid[:300, :400]
    picture = np.stack([y * 255 / 300, x * 255 / 400, 0 * x], -1).astype(np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).save(path, quality=98)
    for augment in ("light", "standard", "strong", "none"):
        transform = TrainTransform(augment, Preprocess(size=(32, 32)))
        for seed in range(10):
            difference = transform(str(path), seed).astype(int) - transform(picture, seed)
            assert np.abs(difference).mean() < 4, (augment, seed)


def test_a_pipeline_survives_in_the_spec():
    steps = pipeline("[{RandomResizedCrop: {scale: [0.5, 1]}}, HorizontalFlip]")
    data = SyntheticData(augment=steps)
    assert data.spec["init_args"]["augment"] == steps


def test_a_transform_that_fails_on_an_image_says_so():
    steps = [{"RandomCrop": {"height": 100, "width": 100}}]
    with pytest.raises(
        AugmentError, match=r"failed on an image of 60 x 50 pixels: .*start it with"
    ):
        TrainTransform(steps, SIZE)(IMAGE, 1)


@pytest.mark.parametrize("name", ["Normalize", "ToFloat"])
def test_what_gives_no_image_is_refused(name):
    with pytest.raises(AugmentError, match=r"gives float32 of shape \[60, 50, 3\].*Leave out Norm"):
        TrainTransform([name], SIZE)(IMAGE, 1)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (
            "strogn",
            r"augment is 'strogn'\. Choices: auto, none, light, standard, strong, or a list",
        ),
        (["HorizontalFlp"], r"no transform 'HorizontalFlp'\. Did you mean 'HorizontalFlip'"),
        (["strong"], r"no transform 'strong'.*A preset is given alone: none, light"),
        ([{"Rotate": {"limt": 5}}], r"Rotate cannot be made with \{'limt': 5\}: .*not valid"),
        ([{"Rotate": {"limit": "five"}}], r"Rotate cannot be made with \{'limit': 'five'\}"),
        ([{"Rotate": {}, "HorizontalFlip": {}}], r"A step of augment is \{.*mind the indentation"),
        ([{"Rotate": 5}], r"A step of augment is \{'Rotate': 5\}"),
        ([5], r"A step of augment is 5\. Give a name"),
        ([{"RandomResizedCrop": {"size": [9, 9]}}], r"takes scale and ratio, not size"),
        (["Compose"], r"Compose cannot be made with"),
        (["cv2"], r"no transform 'cv2'"),
    ],
)
def test_pipelines_that_cannot_be_made(steps, text):
    with pytest.raises(AugmentError, match=text):
        check_augment(steps)
    with pytest.raises(AugmentError, match=text):
        SyntheticData(augment=steps)
