from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import skimage.data
import torch
from PIL import Image
from timm.data import create_transform
from vfm_runtime.bundle.contract import Contract

from vfm.bundle.onnx_graphs import write_preprocess
from vfm.preprocess import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPSET = 20


def config(**changes: object) -> dict:
    own = {
        "input_size": (3, 224, 256),
        "interpolation": "bicubic",
        "mean": MEAN,
        "std": STD,
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    return own | changes


def test_from_timm_takes_everything_over() -> None:
    assert Preprocess.from_timm(config()) == Preprocess(
        size=(224, 256),
        fit="crop",
        crop_fraction=0.9,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
    )


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"crop_mode": "squash"}, "fit", "squash"),
        ({"crop_mode": "border"}, "fit", "letterbox"),
        ({"crop_mode": None}, "fit", "crop"),
        ({"crop_mode": ""}, "fit", "crop"),
        ({"interpolation": "bilinear"}, "interpolation", "bilinear"),
        ({"interpolation": "lanczos"}, "interpolation", "bicubic"),
        ({"crop_pct": 1}, "crop_fraction", 1.0),
        ({"mean": [0.5, 0.5, 0.5]}, "mean", (0.5, 0.5, 0.5)),
    ],
)
def test_from_timm_knows_timms_choices(changes: dict, field: str, value: object) -> None:
    assert getattr(Preprocess.from_timm(config(**changes)), field) == value


def test_from_timm_lets_size_and_fit_be_chosen() -> None:
    made = Preprocess.from_timm(config(), size=(32, 48), fit="letterbox")
    assert (made.size, made.fit) == ((32, 48), "letterbox")


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (20000, 3), (37, 53), (24, 32), (7, 5)])
def test_every_size_comes_out_at_the_models(fit: str, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), (10, 120, 230), np.uint8)
    pixels, geometry = Preprocess(size=(24, 32), fit=fit, mean=MEAN, std=STD).resize(image)
    assert pixels.shape == (24, 32, 3)
    assert pixels.dtype == np.uint8
    assert (geometry.height, geometry.width) == shape
    # An even colour stays as it is wherever the image lies.
    y = int(shape[0] / 2 * geometry.scale_y + geometry.offset_y)
    x = int(shape[1] / 2 * geometry.scale_x + geometry.offset_x)
    assert (pixels[min(y, 23), min(x, 31)] == (10, 120, 230)).all()


def test_the_input_is_left_alone_and_may_be_a_view() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    before = image.copy()
    way = Preprocess(size=(16, 16))
    flipped = way.resize(image[:, ::-1])[0]
    assert (image == before).all()
    assert (flipped == way.resize(np.ascontiguousarray(image[:, ::-1]))[0]).all()


@pytest.mark.parametrize(
    ("fit", "fraction", "shape", "size", "block"),
    [
        ("crop", 1.0, (64, 96), (32, 32), (20, 40, 40, 60)),
        ("crop", 0.5, (64, 96), (32, 32), (24, 40, 40, 52)),
        ("crop", 0.875, (301, 200), (64, 48), (100, 180, 60, 150)),
        ("crop", 1.0, (10, 10), (40, 40), (2, 5, 3, 9)),
        ("squash", 1.0, (64, 200), (32, 40), (10, 30, 50, 150)),
        ("letterbox", 1.0, (64, 128), (32, 32), (10, 40, 20, 100)),
        ("letterbox", 1.0, (150, 61), (48, 64), (30, 100, 10, 50)),
    ],
)
def test_geometry_says_where_a_block_lands(
    fit: str,
    fraction: float,
    shape: tuple[int, int],
    size: tuple[int, int],
    block: tuple[int, int, int, int],
) -> None:
    top, bottom, left, right = block
    image = np.zeros((*shape, 3), np.uint8)
    image[top:bottom, left:right] = 255
    way = Preprocess(size=size, fit=fit, crop_fraction=fraction, mean=(0.0, 0.0, 0.0))
    pixels, g = way.resize(image)
    rows, columns = np.nonzero(pixels[:, :, 0] > 127)
    found = (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
    expected = (
        top * g.scale_y + g.offset_y,
        bottom * g.scale_y + g.offset_y,
        left * g.scale_x + g.offset_x,
        right * g.scale_x + g.offset_x,
    )
    assert np.abs(np.subtract(found, expected)).max() <= 0.6


def test_crop_keeps_the_middle_and_squash_the_whole() -> None:
    image = np.zeros((30, 90, 3), np.uint8)
    image[:, 30:60] = 255
    assert (Preprocess(size=(10, 10)).resize(image)[0] == 255).all()
    squashed = Preprocess(size=(10, 30), fit="squash").resize(image)[0]
    assert (squashed[:, 12:18] == 255).all()
    assert (squashed[:, :8] == 0).all()
    assert (squashed[:, 22:] == 0).all()


def test_letterbox_pads_with_the_mean_colour() -> None:
    image = np.full((16, 64, 3), 255, np.uint8)
    pixels = Preprocess(size=(32, 32), fit="letterbox", mean=MEAN, std=STD).resize(image)[0]
    fill = [round(255 * m) for m in MEAN]
    assert (pixels[:12] == fill).all()
    assert (pixels[20:] == fill).all()
    assert (pixels[12:20] == 255).all()


def test_normalise_is_the_formula() -> None:
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    got = Preprocess(size=(5, 7), mean=MEAN, std=STD).normalize(pixels)
    expected = (pixels.numpy() / 255 - np.array(MEAN)) / np.array(STD)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fit": "stretch"}, r"fit is 'stretch'\. Choices: crop, squash, letterbox\."),
        ({"interpolation": "nearest"}, r"interpolation is 'nearest'\. Choices: bilinear, bicubic"),
        ({"size": (0, 4)}, r"size is \(0, 4\)\. Give height and width"),
        ({"size": (4,)}, "Give height and width"),
        ({"crop_fraction": 0}, r"crop_fraction is 0\. Give a number above 0, up to 1"),
        ({"crop_fraction": 1.01}, r"crop_fraction is 1\.01"),
        ({"mean": (0.5, 0.5)}, "three numbers each"),
        ({"std": (0.5, 0.0, 0.5)}, "std above 0"),
    ],
)
def test_bad_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess(**({"size": (8, 8)} | values))


def test_dict_and_back_through_json() -> None:
    way = Preprocess(
        size=(8, 16),
        fit="letterbox",
        crop_fraction=0.875,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
    )
    back = Preprocess(**json.loads(json.dumps(way.to_dict())))
    assert back == way
    assert asdict(back) == asdict(way)


@pytest.mark.parametrize("photo", ["astronaut", "chelsea", "coffee"])
@pytest.mark.parametrize(
    ("interpolation", "fraction", "size"),
    [("bicubic", 0.9, 224), ("bilinear", 0.875, 224), ("bicubic", 1.0, 64)],
)
def test_crop_is_close_to_timms_evaluation(
    photo: str, interpolation: str, fraction: float, size: int
) -> None:
    image = getattr(skimage.data, photo)()
    theirs = create_transform(
        (3, size, size),
        interpolation=interpolation,
        crop_pct=fraction,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    expected = theirs(Image.fromarray(image)).permute(1, 2, 0).numpy() * 255
    way = Preprocess(size=(size, size), crop_fraction=fraction, interpolation=interpolation)
    got = way.resize(image)[0].astype(np.float32)
    difference = np.abs(got - expected).mean()
    # timm rounds the resized image to whole pixels and then cuts: up to half a pixel lies between.
    assert difference < 5
    # Any whole pixel fits worse.
    assert difference < np.abs(got[:, 1:] - expected[:, :-1]).mean()
    assert difference < np.abs(got[:, :-1] - expected[:, 1:]).mean()


Session = tuple[Preprocess, onnxruntime.InferenceSession]


@pytest.fixture(
    scope="module",
    params=[("crop", "bilinear"), ("crop", "bicubic"), ("letterbox", "bilinear")],
    ids="-".join,
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    fit, interpolation = request.param
    way = Preprocess(size=(32, 32), fit=fit, interpolation=interpolation, mean=MEAN, std=STD)
    contract = Contract(
        task="classification",
        labels=("a", "b"),
        preprocess=way.to_dict(),
        backbone="none",
        license=None,
        versions={},
    )
    path: Path = tmp_path_factory.mktemp("graph") / "preprocess.onnx"
    write_preprocess(path, contract, way, OPSET)
    return way, onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, image: np.ndarray) -> np.ndarray:
    return session.run(["pixels"], {"image": image})[0][0]


def test_enlarged_small_images_export_with_equal_pixels(exported: Session) -> None:
    way, session = exported
    random = np.random.default_rng(0)
    for _ in range(50):
        image = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        np.testing.assert_array_equal(run(session, image), way.resize(image)[0])


@pytest.mark.parametrize("photo", ["astronaut", "chelsea", "coffee"])
def test_photos_export_with_all_but_equal_pixels(exported: Session, photo: str) -> None:
    way, session = exported
    image = getattr(skimage.data, photo)()
    difference = np.abs(run(session, image).astype(int) - way.resize(image)[0].astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (700, 3), (37, 53), (32, 32), (33, 31)])
def test_odd_sizes_export_alike(exported: Session, shape: tuple[int, int]) -> None:
    way, session = exported
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    difference = np.abs(run(session, image).astype(int) - way.resize(image)[0].astype(int))
    assert difference.max() <= 1
    # One tie among these few pixels is already more than a photo's share.
    assert (difference > 0).sum() <= 3
