"""The bit depth of the data: in training, evaluation, checkpoint, bundle and server alike."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import vfm_runtime
from vfm_runtime.errors import MismatchError, OptionError
from vfm_runtime.media.image import ImageError
from vfm_runtime.server.uploads import open_picture

import vfm
from tests.image_folders import deepen_images, write_image_folder
from tests.tasks.tiny import VIT, fit, trainer, vit
from vfm.cli import main
from vfm.data import FolderData
from vfm.embed.store import EmbeddingStore
from vfm.preprocess import Preprocess
from vfm.report import draw_contact_sheet
from vfm.search import cluster_command, command
from vfm.tasks.classification import page
from vfm.tasks.results import open_record

SHALLOW = VIT | {"depth": 1}


def read_folder(folder, **options):
    return FolderData(folder, augment="none", batch_size=8, num_workers=0, seed=1, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A training on 12-bit colors in 16-bit files, and the same images of 8 bits."""
    folder = tmp_path_factory.mktemp("deep")
    images = write_image_folder(folder / "plain", images_per_class=8, size=(40, 30))
    deepen_images(images, folder / "deep")
    fit(
        folder,
        vit(backbone_args=SHALLOW),
        read_folder(folder / "deep", bit_depth=12),
        max_epochs=1,
    )
    return folder


def test_training_and_evaluation_see_the_images_of_8_bits(root):
    images = []
    for name, options in (("plain", {}), ("deep", {"bit_depth": 12})):
        data = read_folder(root / name, **options)
        data.preprocess = Preprocess(size=(32, 32))
        data.setup("fit")
        for dataset in (data.build_dataset("train"), data._build_training_dataset()):
            images.append(np.stack([dataset[i].image for i in range(len(dataset))]))
    assert all(np.array_equal(images[0], other) for other in images[1:])


def test_the_bundle_reads_images_as_the_training_did(root, tmp_path):
    checkpoint = root / "checkpoints" / "last.ckpt"
    model = vfm.load(checkpoint, device="cpu")
    bundle = vfm.export(checkpoint, images=root / "deep", out=tmp_path / "b", num_images=4)
    contract = json.loads((bundle / "vfm.json").read_text())["contract"]
    assert contract["value_range"] == {"low": 0, "high": 4095}
    assert "bit_depth" not in contract["preprocess"]
    runtime = vfm_runtime.load(bundle, device="cpu")
    deep = sorted((root / "deep").rglob("*.png"))[:3]
    plain = [root / "plain" / path.relative_to(root / "deep") for path in deep]
    for one, other in zip(deep, plain, strict=True):
        pixels = runtime.preprocess(other)
        assert np.array_equal(runtime.preprocess(one), pixels)
        assert np.array_equal(model.preprocess(one), pixels)
        sent = open_picture(one.read_bytes(), runtime.value_range)
        assert np.array_equal(runtime.preprocess(sent), pixels)
    full = cv2.imencode(".png", np.full((9, 9), 65535, np.uint16))[1].tobytes()
    with pytest.raises(ImageError, match="outside the range 0 to 4095"):
        runtime.predict(full)


def test_the_page_of_results_shows_what_the_model_saw(root, tmp_path, monkeypatch):
    data = read_folder(root / "deep", bit_depth=12)
    opened = []

    def open_picture(record, *args):
        opened.append((record, open_record(record, *args)))
        return opened[-1][1]

    monkeypatch.setattr(page, "open_record", open_picture)
    checkpoint = shutil.copy(root / "checkpoints" / "last.ckpt", tmp_path)
    trainer(tmp_path).validate(
        vit(backbone_args=SHALLOW), datamodule=data, ckpt_path=checkpoint, verbose=False
    )
    assert opened
    for record, pixels in opened:
        plain = vfm_runtime.media.image.open_image(root / "plain" / record.name)
        assert np.array_equal(pixels, plain)


def test_search_and_its_pages_see_the_images_as_the_model_does(root, tmp_path, monkeypatch, capsys):
    pytest.importorskip("lancedb")
    checkpoint, store = str(root / "checkpoints" / "last.ckpt"), str(tmp_path / "store")
    assert main(["embed", str(root / "deep"), "--to", store, "--model", checkpoint]) == 0
    assert EmbeddingStore.open(store).model.value_range == (0, 4095)
    shown = []

    def draw(images, *args, **options):
        shown.extend(images)
        return draw_contact_sheet(images, *args, **options)

    for module in (command, cluster_command):
        monkeypatch.setattr(module, "draw_contact_sheet", draw)
    query = min((root / "deep").rglob("*.png"))
    plain = vfm_runtime.media.image.open_image(root / "plain" / query.relative_to(root / "deep"))
    words = ["search", store, "--image", str(query), "--k", "1", "-o", str(tmp_path / "page.html")]
    assert main(words) == 0
    # Both the query and the row of the same file, whose vector is that of the same pixels.
    assert "1.000" in capsys.readouterr().out
    assert len(shown) == 2
    assert all(np.array_equal(picture, plain) for picture in shown)
    assert main(["cluster", store, "--k", "2", "-o", str(tmp_path / "clusters.html")]) == 0
    assert min(picture.max() for picture in shown) > 100


def test_another_bit_depth_than_the_training_is_refused(root):
    task = vit().load(root / "checkpoints" / "last.ckpt")
    data = read_folder(root / "deep", bit_depth=10)
    with pytest.raises(OptionError, match=r"bit_depth is 10, and the model was trained with 12"):
        data.preprocess = task.preprocess
    with pytest.raises(OptionError, match=r"bit_depth is 40. Give the bits"):
        read_folder(root / "deep", bit_depth=40)
    task.preprocess = replace(task.preprocess, bit_depth=None)
    data.preprocess = task.preprocess
    with pytest.raises(MismatchError, match="the model was trained without one"):
        task._require_same_preprocess(data)
