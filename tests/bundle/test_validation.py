"""Real images with their truth, for every kind of model: the figures are those of validation in training."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from vfm_runtime.media.image import open_image

from tests.data.boxes_written import write
from tests.deepfake.data.faces import write_faces
from tests.image_folders import write_image_folder
from tests.tasks.tiny import VIT, fit, shapes, trainer, vit
from vfm.data import DetectionData, FolderData, SyntheticData, TableData
from vfm.data.detection.dataset import BoxAugment
from vfm.deepfake import DeepfakeData, DeepfakeTask
from vfm.models.heads import DetrHead
from vfm.tasks import BaseTask, DetectionTask, Optim
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.labeled_images import ValidationError
from vfm.tasks.labels import LabelError
from vfm.tasks.predictor import TorchPredictor
from vfm.training.checkpoint import CheckpointError

SIDE = 48


class Run:
    """A trained model, its data, and what validation in training says of it."""

    def __init__(self, root: Path, task: BaseTask, data, metric: str) -> None:
        L.seed_everything(3)
        self.root = data.root
        made = trainer(root, max_epochs=2)
        made.fit(task, datamodule=data)
        self.checkpoint = root / "checkpoints" / "last.ckpt"
        self.task = BaseTask.load(self.checkpoint)
        self.run = TorchPredictor(self.task).run
        found = trainer(root).validate(self.task, datamodule=data, verbose=False)
        self.figure = found[0][f"val/{metric}"]

    def open_validation(self, data=None, **options):
        # Anew each time, as its data is read once.
        return Checkpoint.open(self.checkpoint).open_validation(data, **options)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    root = write_image_folder(folder / "images", images_per_class=20, size=(40, 30))
    data = FolderData(root, augment="none", batch_size=16, num_workers=0, val_fraction=0.3)
    return Run(folder, vit(), data, "accuracy")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    root = write_image_folder(folder / "images", images_per_class=20)
    table = write_table(root, folder / "table.csv")
    options = {"label_column": ["class_0", "class_2", "dark"], "root": root, "path_column": "file"}
    data = TableData(table, augment="none", batch_size=16, num_workers=0, **options)
    return Run(folder, vit(multilabel=True), data, "mAP")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    data = DetectionData(write(folder, "coco"), batch_size=4, num_workers=0, augment=BoxAugment())
    task = DetectionTask(
        "vit_tiny_patch16_224",
        head=DetrHead(num_queries=20, num_groups=1, num_layers=2),
        pretrained=False,
        image_size=64,
        backbone_args={"embed_dim": 96, "depth": 2, "num_heads": 3, "patch_size": 8},
        optim=Optim(lr=1e-3),
    )
    return Run(folder, task, data, "AP")


@pytest.fixture(scope="module")
def deepfakes(tmp_path_factory):
    folder, faces = tmp_path_factory.mktemp("deepfakes"), tmp_path_factory.mktemp("faces")
    write_faces(faces, num_identities=8, num_frames=2, size=SIDE)
    shares = {"val_fraction": 0.25, "test_fraction": 0.25}
    data = DeepfakeData(faces, batch_size=8, num_workers=0, **shares)
    task = DeepfakeTask(
        "vit_tiny_patch16_224",
        pretrained=False,
        image_size=SIDE,
        backbone_args=VIT | {"patch_size": 8},
        adapt="full",
        optim=Optim(lr=1e-3),
    )
    return Run(folder, task, data, "frame_auc")


def write_table(root, path):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class_0", "class_2", "dark"])
        for image in sorted(root.rglob("*.png")):
            name = image.parent.name
            row = [name == "class_0", name == "class_2", open_image(image).mean() < 130]
            writer.writerow([image.relative_to(root), *map(int, row)])
    return path


@pytest.fixture(params=["labels", "several", "boxes", "deepfakes"])
def any_run(request):
    return request.getfixturevalue(request.param)


def test_the_val_split_of_the_training_gives_its_figure(any_run):
    found = any_run.open_validation()
    assert found.measure(found.collect_outputs(any_run.run)) == pytest.approx(
        any_run.figure, abs=1e-6
    )
    # In batches of another size too, and by the answers.
    outputs = found.collect_outputs(any_run.run, batch_size=5)
    assert found.measure(outputs) == pytest.approx(any_run.figure, abs=1e-6)
    assert all(len(values) == found.num_images for values in outputs.values())
    assert len(found.truth) == found.num_images
    assert (
        sum(len(batch["pixels"]) for batch in found.images.iterate_batches(3)) == found.num_images
    )


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("labels", "accuracy"), ("several", "mAP"), ("boxes", "AP"), ("deepfakes", "frame_auc")],
)
def test_metric(request, kind, metric):
    run = request.getfixturevalue(kind)
    assert run.open_validation().metric == metric


def test_the_folder_of_the_training_is_its_val_split(any_run):
    own, again = any_run.open_validation(), any_run.open_validation(any_run.root)
    if isinstance(own.images.source.data, TableData):
        assert again.num_images < 60
    assert again.paths == own.paths


def test_pixels_are_those_of_production(labels):
    found = labels.open_validation()
    pixels = np.concatenate([batch["pixels"] for batch in found.images.iterate_batches(7)])
    assert found.num_images == len(found.paths) == 18
    model = TorchPredictor(labels.task)
    for row, path in zip(pixels, found.paths, strict=True):
        np.testing.assert_array_equal(row, model.prepare(path)["pixels"][0])


def test_boxes_are_found_in_pixels_of_the_original(boxes):
    found = boxes.open_validation()
    record = found.images.source.records[0]
    prepared = TorchPredictor(boxes.task).prepare(record.source)
    batch = next(found.images.iterate_batches(1))
    np.testing.assert_array_equal(batch["pixels"], prepared["pixels"])
    np.testing.assert_array_equal(batch["geometry"], prepared["geometry"])
    np.testing.assert_array_equal(found.truth[0].corners, record.objects.corners)


def test_other_images_all_of_them_or_their_val_split(labels, tmp_path):
    root = write_image_folder(tmp_path / "flat", images_per_class=5, seed=9)
    found = labels.open_validation(root)
    assert found.num_images == 15
    assert found.truth.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    parts = write_image_folder(
        tmp_path / "parts", images_per_class=4, seed=9, splits=["train", "valid"]
    )
    assert {path.parent.parent.name for path in labels.open_validation(parts).paths} == {"valid"}


def test_more_than_one_split_without_val_is_told(labels, tmp_path, caplog):
    root = write_image_folder(
        tmp_path / "parts", images_per_class=4, seed=9, splits=["train", "test"]
    )
    assert labels.open_validation(root).num_images == 24
    assert "states no val split: all of train and test is taken" in caplog.text


def test_labels_are_matched_by_name(labels, tmp_path):
    root = write_image_folder(tmp_path / "images", images_per_class=4, seed=9)
    shutil.rmtree(root / "class_0")
    found = labels.open_validation(root)
    assert found.labels == ("class_0", "class_1", "class_2")
    assert found.truth.tolist() == [1] * 4 + [2] * 4
    perfect = np.eye(3, dtype=np.float32)[found.truth]
    assert found.measure({"scores": perfect}) == 1
    (root / "class_1").rename(root / "zebra")
    with pytest.raises(LabelError, match=r"1 labels that the model was not trained for: \['zebra'"):
        labels.open_validation(root)


def test_a_table_of_other_images(labels, several, tmp_path):
    root = write_image_folder(tmp_path / "images", images_per_class=4, seed=9)
    table = write_table(root, root / "others.csv")
    found = several.open_validation(table)
    assert found.truth.shape == (12, 3)
    assert found.truth[:4, 0].tolist() == [1.0] * 4
    rows = ["path,label,split", "class_1/0003.png,class_1,val", "class_2/0000.png,class_2,train"]
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    rows = ["path,label,split", *(f"{n},{n[:7]},{'val' if '2' in n else 'test'}" for n in names)]
    (root / "one.csv").write_text("\n".join(rows))
    found = labels.open_validation(root / "one.csv")
    assert found.num_images == sum("2" in name for name in names)


@pytest.mark.parametrize("layout", ["yolo", "voc", "csv"])
def test_boxes_in_other_layouts(boxes, tmp_path, layout):
    found = boxes.open_validation(write(tmp_path, layout))
    assert found.num_images == boxes.open_validation().num_images
    assert found.measure(found.collect_outputs(boxes.run)) == pytest.approx(boxes.figure, abs=0.02)


def test_perfect_boxes(boxes):
    found = boxes.open_validation()
    most = max(len(true.labels) for true in found.truth)
    outputs = {
        "boxes": np.zeros((found.num_images, most, 4), np.float32),
        "labels": np.zeros((found.num_images, most), np.int64),
        "scores": np.zeros((found.num_images, most), np.float32),
    }
    for row, true in enumerate(found.truth):
        number = len(true.labels)
        outputs["boxes"][row, :number] = true.corners
        outputs["labels"][row, :number] = true.labels
        outputs["scores"][row, :number] = 0.9
    assert found.measure(outputs) == pytest.approx(1, abs=1e-3)


def test_other_deepfakes(deepfakes, tmp_path):
    write_faces(tmp_path, num_identities=8, num_frames=1, size=SIDE, seed=5)
    found = deepfakes.open_validation(tmp_path)
    assert found.num_images == 24
    assert found.truth.sum() == 16
    by_manifest = deepfakes.open_validation(tmp_path / "manifest.csv")
    assert by_manifest.paths == found.paths
    assert found.measure({"logits": found.truth * 2.0 - 1}) == 1
    # Without crop.json the images are taken for crops like those of the training.
    (tmp_path / "crop.json").unlink()
    assert deepfakes.open_validation(tmp_path).num_images == 24


def test_folders_of_real_and_fake(deepfakes, tmp_path):
    for number, item in enumerate(write_faces(tmp_path / "made", 8, 1, SIDE, seed=5)):
        place = tmp_path / "flat" / item.label / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(item.path, place)
    found = deepfakes.open_validation(tmp_path / "flat")
    assert found.num_images == 24
    assert [path.parent.name == "fake" for path in found.paths] == (found.truth == 1).tolist()


def test_deepfakes_that_are_cut_out_otherwise(deepfakes, tmp_path):
    write_faces(tmp_path, num_identities=8, num_frames=1, size=64)
    with pytest.raises(CheckpointError, match="not cropped as those that the model was trained on"):
        deepfakes.open_validation(tmp_path)


def test_only_reals_have_no_auc(deepfakes, tmp_path):
    write_faces(tmp_path, num_identities=8, num_frames=1, size=SIDE, seed=5)
    lines = (tmp_path / "manifest.csv").read_text().splitlines()
    reals = [line for line in lines[1:] if ",real," in line]
    (tmp_path / "manifest.csv").write_text("\n".join([lines[0], *reals]))
    images = deepfakes.open_validation(tmp_path)
    outputs = images.collect_outputs(deepfakes.run)
    with pytest.raises(ValidationError, match="All 8 images are real, so there is no AUC"):
        images.measure(outputs)


def test_images_that_were_trained_on_are_refused(labels, tmp_path):
    (tmp_path / "linked").symlink_to(labels.root)
    # By another name of the folder it is still that of the training.
    assert labels.open_validation(tmp_path / "linked").paths == labels.open_validation().paths
    # Links to files are followed, and so is the folder above the training's.
    for path in sorted(labels.root.rglob("*.png")):
        place = tmp_path / "mixed" / path.relative_to(labels.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    with pytest.raises(
        ValidationError, match=r"of these \d+ images were trained on, such as .*png"
    ):
        labels.open_validation(tmp_path / "mixed")


def test_training_data_that_is_gone(labels, tmp_path, caplog):
    others = write_image_folder(tmp_path / "others", images_per_class=4, seed=9)
    away = labels.root.rename(tmp_path / "away")
    try:
        with pytest.raises(ValidationError, match=r"gives no val images: (.|\n)*--data FOLDER"):
            labels.open_validation()
        assert labels.open_validation(others).num_images == 12
        assert "it cannot be checked that none of these images was trained on" in caplog.text
    finally:
        away.rename(labels.root)


def test_a_training_without_validation(tmp_path):
    root = write_image_folder(tmp_path / "images", images_per_class=6)
    data = FolderData(root, augment="none", num_workers=0, val_fraction=0, batch_size=8)
    fit(tmp_path, vit(), data, limit_val_batches=0)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(ValidationError, match=r"gives no val images: There are no val images"):
        Checkpoint.open(checkpoint).open_validation()


def test_a_checkpoint_that_names_no_data(labels, tmp_path):
    content = torch.load(labels.checkpoint, weights_only=True)
    content["vfm"]["data"] = None
    torch.save(content, tmp_path / "bare.ckpt")
    with pytest.raises(ValidationError, match="does not say what it was trained on"):
        Checkpoint.open(tmp_path / "bare.ckpt").open_validation()


def test_images_in_memory_have_no_paths(tmp_path):
    fit(tmp_path, vit(), shapes())
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    found = Checkpoint.open(checkpoint).open_validation()
    assert found.num_images == 24
    assert found.paths == []
    assert isinstance(found.images.source.data, SyntheticData)


def test_no_more_images_than_fit(labels, caplog):
    found = labels.open_validation(max_images=5)
    assert found.num_images == 5
    assert "Of 18 images 5 are taken, spread evenly" in caplog.text
    whole = labels.open_validation().paths
    assert found.paths == [whole[i] for i in (0, 4, 8, 13, 17)]
    assert found.truth.tolist() == [0, 0, 1, 2, 2]


def test_files_that_cannot_be_read(labels, tmp_path, caplog):
    root = write_image_folder(tmp_path / "images", images_per_class=3, seed=9)
    broken = sorted(root.rglob("*.png"))[1]
    broken.write_bytes(b"no image")
    found = labels.open_validation(root)
    assert found.num_images == 8
    assert broken not in found.paths
    assert found.truth.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert "1 of the 9 images cannot be read, such as class_0/" in caplog.text
    for path in root.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValidationError, match=r"9 of the 9 images cannot be read.* --data"):
        labels.open_validation(root)


def test_paths_that_hold_nothing(labels, tmp_path):
    with pytest.raises(ValidationError, match=r"There is no .*nowhere .*Give --data a folder"):
        labels.open_validation(tmp_path / "nowhere")
    flat = write_image_folder(tmp_path / "images", images_per_class=3, seed=9) / "class_0"
    with pytest.raises(ValidationError, match="holds images, but no labels"):
        labels.open_validation(flat)
