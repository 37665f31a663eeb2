"""An export opens its checkpoint once, reads its data once, and asks tasks in place of asking what they are."""

from collections import Counter
from pathlib import Path

import pytest
import torch

import vfm
import vfm.training.checkpoint
from tests.image_folders import write_image_folder
from tests.tasks.tiny import VIT, fit, vit
from vfm.bundle import ExportError, ExportOptions, export as bundle_export
from vfm.bundle.export import export, write_bundle
from vfm.data import FolderData
from vfm.data.dataset import ImageDataset
from vfm.deepfake import DeepfakeTask
from vfm.tasks import BaseTask
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.labeled_images import ValidationError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once")
    images = write_image_folder(folder / "images", images_per_class=70, size=(40, 30))
    data = FolderData(images, augment="none", batch_size=16, num_workers=0, val_fraction=0.3)
    torch.manual_seed(0)
    fit(folder, vit(backbone_args=VIT | {"depth": 1}), data, max_epochs=1)
    return folder


def counted(monkeypatch, owner, name, key):
    """Counts the calls of a function by what `key` makes of their arguments."""
    calls = Counter()
    function = getattr(owner, name)

    def count(*args, **kwargs):
        calls[key(*args)] += 1
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, count)
    return calls


def test_everything_is_read_once(root, monkeypatch):
    files = counted(monkeypatch, vfm.training.checkpoint, "read_plain", Path)
    built = counted(monkeypatch, FolderData, "__init__", lambda *_: "data")
    read = counted(monkeypatch, FolderData, "read", lambda *_: "data")
    images = counted(
        monkeypatch, ImageDataset, "__getitem__", lambda data, i: data.records[i].source
    )
    manifests = counted(monkeypatch, bundle_export, "write_manifest", lambda *_: "manifest")
    file = root / "checkpoints" / "last.ckpt"
    options = {"int8": True, "calibrate": True, "reference": True, "max_drop": 50.0}
    out = export(
        file, images=root / "images", out=root / "bundle", num_images=8, opset=20, **options
    )
    assert (out / "model.int8.onnx").is_file()
    assert files == {file: 1}
    assert manifests == {"manifest": 1}
    assert built == read == {"data": 1}
    assert len(images) == 189  # a tenth of the 210 is the test split
    assert set(images.values()) == {1}


def test_a_loaded_model_is_exported_without_reading_its_file_again(root, monkeypatch, tmp_path):
    files = counted(monkeypatch, vfm.training.checkpoint, "read_plain", Path)
    model = vfm.load(root / "checkpoints" / "last.ckpt", device="cpu")
    model.export(tmp_path / "b", images=root / "images", num_images=4, calibrate=True)
    assert set(files.values()) == {1}


def test_a_task_without_labelled_data_says_what_it_lacks(root, monkeypatch, tmp_path):
    opened = Checkpoint.open(root / "checkpoints" / "last.ckpt")
    monkeypatch.setattr(type(opened.task), "open_validation", BaseTask.open_validation)
    options = ExportOptions(images=root / "images", out=tmp_path / "b", int8=True)
    text = "ClassificationTask has no method 'open_validation', so nothing can be fitted or measured on"
    with pytest.raises(ValidationError, match=text):
        write_bundle({"": opened}, options)


def test_nothing_to_export(tmp_path):
    with pytest.raises(ExportError, match=r"There is no head\. Give at least one checkpoint"):
        export([], images=tmp_path, out=tmp_path / "b")


def test_a_reference_that_the_task_refuses_is_refused_first(tmp_path):
    task = DeepfakeTask("test_efficientnet", pretrained=False, image_size=40)
    options = ExportOptions(images=tmp_path, out=tmp_path / "b", reference=True)
    text = "--reference is for models that look at whole images; one that tells real from fake has"
    with pytest.raises(ExportError, match=text):
        write_bundle({"": Checkpoint(task, {}, path=tmp_path / "x.ckpt")}, options, [])
