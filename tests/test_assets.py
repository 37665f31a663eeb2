"""Real weights on real photos."""

import json

import lightning.pytorch  # noqa: F401 - its log keeps the stderr of its import
import numpy as np
import pytest
import timm
import torch
import vfm_runtime
from skimage import data
from timm.data import ImageNetInfo, resolve_model_data_config

import vfm
from tests import fetch_assets
from tests.assets import missing
from tests.image_folders import write_image_folder
from vfm.cli import main
from vfm.data import DetectionData
from vfm.models.weights import load_weights
from vfm.preprocess import Preprocess

pytestmark = pytest.mark.assets
NAME = "tf_efficientnet_lite0"


def test_weights_fit_by_order(lite0_weights):
    backbone = timm.create_model(NAME, num_classes=0)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    report = load_weights(backbone, lite0_weights)
    assert report.by == "order"
    assert report.coverage == 1.0
    assert report.matched == report.total == len(before)
    assert report.missing == ()
    assert len(report.unexpected) == 2  # the classifier
    after = backbone.state_dict()
    assert not torch.equal(before["conv_stem.weight"], after["conv_stem.weight"])


@pytest.mark.parametrize(
    ("photo", "expected", "least"),
    [("coffee", "espresso", 0.8), ("camera", "tripod", 0.8), ("chelsea", "cat", 0.2)],
)
def test_photos_are_recognised(lite0_weights, photo, expected, least):
    model = timm.create_model(NAME, num_classes=1000)
    report = load_weights(model, lite0_weights)
    assert report.coverage == 1.0
    assert report.unexpected == ()
    way = Preprocess.from_timm(resolve_model_data_config(model))
    image = getattr(data, photo)()
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    pixels = torch.from_numpy(way.resize(image)[0])
    with torch.inference_mode():
        scores = model.eval()(way.normalize(pixels[None])).softmax(-1)[0]
    name = ImageNetInfo("imagenet-1k").index_to_description(int(scores.argmax()))
    assert expected in name.lower()
    assert scores.max() > least


def test_fine_tune_and_export(lite0_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image_folder("images", images_per_class=20, size=[(70, 90), (64, 50)])
    words = ["fit", "--model", "ClassificationTask", "--model.backbone", NAME]
    words += ["--model.weights", str(lite0_weights), "--model.image_size", "64"]
    words += ["--data", "FolderData", "--data.root", "images", "--data.num_workers", "0"]
    words += ["--data.batch_size", "16", "--model.optim.lr", "1e-3"]
    words += ["--trainer.max_epochs", "4", "--trainer.enable_progress_bar", "false"]
    assert main([*words, "--trainer.accelerator", "cpu"]) == 0
    checkpoint = "runs/0/checkpoints/best.ckpt"
    stored = torch.load(checkpoint, weights_only=True)["vfm"]
    assert stored["weights"]["by"] == "order"
    assert stored["weights"]["matched"] == stored["weights"]["total"]
    assert main(["test", "--ckpt_path", checkpoint, "--trainer.accelerator", "cpu"]) == 0
    results = json.loads((tmp_path / "runs/0/checkpoints/results.json").read_text())
    assert results["test"]["accuracy"]["value"] > 0.5  # a third would be chance
    assert main(["export", checkpoint, "--images", "images", "-o", "bundle"]) == 0
    parity = json.loads((tmp_path / "bundle/parity.json").read_text())
    assert parity["passed"] is True
    assert parity["num_images"] >= 32
    files = vfm_runtime.find_images("images")
    expected = vfm.load(checkpoint, device="cpu").predict(files)
    for one, other in zip(
        expected, vfm_runtime.load("bundle", device="cpu").predict(files), strict=True
    ):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        assert one.label == other.label


@pytest.fixture(scope="module")
def aerial():
    folder = fetch_assets.FOLDER / "deepforest" / "deepforest" / "data"
    if folder.is_dir():
        return folder
    return missing("The aerial photos are")


def test_real_boxes(aerial, tmp_path):
    """Photos of odd sizes with XML files as tools write them: every box is read, and lies where a tree is."""
    names = {
        "2019_YELL_2_528000_4978000_image_crop2": 574,
        "2019_YELL_2_541000_4977000_image_crop": 279,
        "OSBS_029": 61,
    }
    for name in names:
        for suffix in (".png", ".xml"):
            (tmp_path / f"{name}{suffix}").write_bytes((aerial / f"{name}{suffix}").read_bytes())
    found = DetectionData(tmp_path, val_fraction=0, test_fraction=0, num_workers=0)
    found.setup()
    boxes = {
        record.name.removesuffix(".png"): len(record.label) for record in found.records["train"]
    }
    assert boxes == names
    cut = DetectionData(tmp_path, tile=400, val_fraction=0, test_fraction=0, num_workers=0)
    cut.preprocess = Preprocess(size=(400, 400), fit="squash")
    cut.setup()
    whole = sum(int((~r.objects.ignored).sum()) for r in cut.records["train"])
    assert whole >= sum(names.values())  # overlapping tiles show some twice
    batch = next(iter(cut.train_dataloader()))
    assert len(batch["image"]) == 16
    assert batch["target"].boxes.min() >= 0


def test_a_table_of_real_boxes(aerial, tmp_path):
    for name in ("OSBS_029.png", "testfile_deepforest.csv"):
        (tmp_path / name).write_bytes((aerial / name).read_bytes())
    found = DetectionData(tmp_path / "testfile_deepforest.csv", val_fraction=0, test_fraction=0)
    found.setup()
    (record,) = found.records["train"]
    assert len(record.label) == 61
