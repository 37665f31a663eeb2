"""`vfm calibrate` for labels, several labels and boxes: what it writes and refuses, and the export that reads it."""

import csv
import json
import shutil

import pytest
import torch
from vfm_runtime.tasks.confidence import ConfidenceRules

import vfm
from tests.image_folders import write_image_folder
from tests.tasks.tiny import fit, shapes, trainer, vit
from vfm.bundle import export as bundle_export
from vfm.bundle.export import export
from vfm.cli import main
from vfm.data import FolderData, SyntheticScenes, TableData
from vfm.data.detection.dataset import BoxAugment
from vfm.models.heads import DetrHead
from vfm.tasks import DetectionTask
from vfm.tasks.calibration import CALIBRATION_FILE, CalibrationError
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.labeled_images import ValidationError


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A checkpoint of a model of three classes; 63 of its images are for validation, 21 for the test."""
    folder = tmp_path_factory.mktemp("labels")
    root = write_image_folder(folder / "images", images_per_class=70, size=(40, 30))
    data = FolderData(root, augment="none", batch_size=32, num_workers=0, val_fraction=0.3)
    torch.manual_seed(0)
    fit(folder, vit(), data)
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    root = write_image_folder(folder / "images", images_per_class=70)
    names = ["class_0", "class_2"]
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *names])
        for path in sorted(root.rglob("*.png")):
            row = [int(path.parent.name == name) for name in names]
            writer.writerow([path.relative_to(root), *row])
    options = {"label_column": names, "root": root, "allow_no_label": True, "val_fraction": 0.3}
    data = TableData(folder / "table.csv", augment="none", num_workers=0, **options)
    fit(folder, vit(multilabel=True), data)
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    data = SyntheticScenes(num_images=240, image_size=64, batch_size=16, augment=BoxAugment())
    task = DetectionTask(
        "vit_tiny_patch16_224",
        head=DetrHead(num_queries=10, num_groups=1, num_layers=1),
        pretrained=False,
        image_size=64,
        backbone_args={"embed_dim": 96, "depth": 2, "num_heads": 3, "patch_size": 8},
    )
    trainer(folder, limit_train_batches=2, limit_val_batches=0).fit(task, datamodule=data)
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(params=["labels", "several", "boxes"])
def any_checkpoint(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def moved(labels, tmp_path):
    """A copy of the checkpoint in a folder of its own."""
    return shutil.copy(labels, tmp_path / "copy.ckpt")


def read_details(checkpoint):
    return json.loads((checkpoint.parent / CALIBRATION_FILE).read_text())


def test_any_checkpoint_gets_its_calibration(any_checkpoint, capsys):
    assert main(["calibrate", str(any_checkpoint)]) == 0
    details = read_details(any_checkpoint)
    opened = Checkpoint.open(any_checkpoint)
    images = opened.open_validation()
    assert details["checkpoint"] == str(any_checkpoint)
    assert details["checkpoint_sha256"] == opened.checksum
    assert details["num_images"] == images.num_images >= 50
    assert details["images_fingerprint"] == images.images.source.fingerprint
    assert details["data"] in (
        str(getattr(images.images.source.data, "root", "")),
        "SyntheticScenes",
    )
    fitted = images.fit_confidence(
        images.collect_outputs(vfm.load(any_checkpoint, device="cpu").run)
    )
    assert ConfidenceRules.from_dict(details["rules"]) == fitted.rules
    assert (details["error_before"], details["error_after"]) == (
        fitted.error_before,
        fitted.error_after,
    )
    assert opened.calibration.rules == fitted.rules
    printed = capsys.readouterr().out
    assert f"Scoring {images.num_images} images" in printed
    assert f"fitted on {images.num_images} validation images" in printed
    assert f"Written: {any_checkpoint.parent / CALIBRATION_FILE}" in printed


def test_other_images_and_a_precision(moved, tmp_path):
    others = write_image_folder(tmp_path / "others", images_per_class=40, seed=9, size=(40, 30))
    words = ["calibrate", str(moved), str(others), "--min-precision", "0.2", "--batch_size", "7"]
    assert main(words) == 0
    details = read_details(moved)
    assert details["data"] == str(others)
    assert details["num_images"] == 120
    assert details["min_precision"] == 0.2
    assert len(details["rules"]["thresholds"]) == 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--fpr", "0.05"],
            "--fpr is 0.05, but a ClassificationTask has no such option. Choices: --min_precision, --batch_size, "
            "--group_column, --table, --equal, --rate, --positive. Leave",
        ),
        (["--cropped"], "--cropped is true, but a ClassificationTask has no such option."),
        (["--split", "all"], "--split is all, but a ClassificationTask has no such option."),
        (["nowhere"], "There is no nowhere (looked in "),
    ],
)
def test_what_a_task_does_not_take_is_refused(moved, words, text, capsys):
    assert main(["calibrate", str(moved), *words]) == 1
    assert text in capsys.readouterr().err
    assert not (moved.parent / CALIBRATION_FILE).exists()


def test_boxes_and_several_labels_have_no_precision(boxes, several, capsys):
    assert main(["calibrate", str(boxes), "--min_precision", "0.9"]) == 1
    text = "--min_precision is 0.9, but a DetectionTask has no such option. Choices: --batch_size."
    assert text in capsys.readouterr().err
    assert main(["calibrate", str(several), "--min_precision", "0.9"]) == 1
    assert "a model of the kind 'multilabel' has another threshold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "text"), [("train", "trained on"), ("test", "tested on, or wil")]
)
def test_images_that_were_used_are_refused_also_in_part(labels, tmp_path, split, text):
    used = Checkpoint.open(labels).split(split).records[:2]
    mixed = write_image_folder(tmp_path / "mixed", images_per_class=20, seed=9)
    for number, record in enumerate(used):
        link = mixed / record.name.split("/")[0] / f"link-{number}.png"
        link.symlink_to(record.source)
    with pytest.raises(ValidationError, match=rf"2 of these 62 images were {text}.* class_./link-"):
        Checkpoint.open(labels).select_calibration_images(
            mixed, vfm.tasks.calibration.CalibrationOptions()
        )
    before = sorted(labels.parent.glob("*"))
    assert main(["calibrate", str(labels), str(mixed)]) == 1
    assert sorted(labels.parent.glob("*")) == before


def test_an_export_calibrates_on_no_tested_image_either(labels, tmp_path):
    used = Checkpoint.open(labels).split("test").records[0]
    mixed = write_image_folder(tmp_path / "mixed", images_per_class=20, seed=9)
    (mixed / used.name.split("/")[0] / "link.png").symlink_to(used.source)
    options = {"images": mixed, "data": mixed, "out": tmp_path / "b"}
    with pytest.raises(ValidationError, match=r"1 of these 61 images were tested on"):
        export(labels, calibrate=True, **options)
    # What is only measured may be measured on them.
    assert Checkpoint.open(labels).open_validation(mixed).num_images == 61


def test_training_data_that_is_gone_is_warned_about(labels, tmp_path, caplog):
    others = write_image_folder(tmp_path / "others", images_per_class=20, seed=9)
    root = labels.parents[1] / "images"
    away = root.rename(tmp_path / "away")
    try:
        assert main(["calibrate", str(labels), str(others)]) == 0
    finally:
        away.rename(root)
        (labels.parent / CALIBRATION_FILE).unlink()
    text = "it cannot be checked that none of these images was trained on, or tested on."
    assert text in caplog.text


def test_val_and_test_that_share_an_image_are_refused(tmp_path, monkeypatch, capsys):
    fit(tmp_path, vit(), shapes())
    plain = vfm.SyntheticData.read
    monkeypatch.setattr(
        vfm.SyntheticData,
        "read",
        lambda self: (records := plain(self)) | {"test": records["val"][:1]},
    )
    assert main(["calibrate", str(tmp_path / "checkpoints" / "last.ckpt")]) == 1
    assert "1 of these 24 images were tested on" in capsys.readouterr().err


def test_an_export_takes_the_calibration_and_says_so(moved, labels, tmp_path, capsys, monkeypatch):
    images = labels.parents[1] / "images"
    assert main(["calibrate", str(moved)]) == 0
    monkeypatch.setattr(bundle_export, "_open_validations", lambda *_: {})  # nothing is fitted anew
    words = ["export", str(moved), "--images", str(images), "--num_images", "4"]
    assert main([*words, "-o", str(tmp_path / "b")]) == 0
    origin = f"From calibration.json beside the checkpoint, fitted on {images}"
    assert f"Calibration: {origin}" in capsys.readouterr().out
    rules = json.loads((tmp_path / "b" / "vfm.json").read_text())["contract"]["rules"]
    details = read_details(moved)
    assert rules == details["rules"]
    assert rules["temperature"] != 1
    card = (tmp_path / "b" / "card.md").read_text()
    assert f"fitted on {details['num_images']} validation images" in card
    assert f"- {origin}" in card


@pytest.mark.slow
def test_the_calibration_of_another_checkpoint_is_not_used(moved, labels, tmp_path, caplog, capsys):
    assert main(["calibrate", str(moved)]) == 0
    content = torch.load(moved, weights_only=True)
    content["epoch"] += 1
    other = tmp_path / "other.ckpt"
    torch.save(content, other)
    images = labels.parents[1] / "images"
    words = ["--images", str(images), "--num_images", "4", "-o", str(tmp_path / "b")]
    assert main(["export", str(other), *words]) == 0
    file = moved.parent / CALIBRATION_FILE
    assert f"{file} is of another checkpoint, {moved}, and is not used. Fit one" in caplog.text
    assert "Calibration:" not in capsys.readouterr().out
    contract = json.loads((tmp_path / "b" / "vfm.json").read_text())["contract"]
    assert contract.get("rules") is None
    # By another name the file is the same.
    assert Checkpoint.open(moved.rename(tmp_path / "renamed.ckpt")).calibration is not None


@pytest.mark.parametrize("text", ["no json", "[]", '{"checkpoint": "x"}', None])
def test_a_damaged_calibration_is_refused(moved, text):
    assert main(["calibrate", str(moved)]) == 0
    details = read_details(moved)
    del details["rules"]
    (moved.parent / CALIBRATION_FILE).write_text(text or json.dumps(details))
    with pytest.raises(CalibrationError, match=r"calibration.json is no calibration: .*vfm calibr"):
        _ = Checkpoint.open(moved).calibration
