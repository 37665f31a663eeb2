"""Embeddings: the same vectors from a checkpoint, from a bare backbone and, without torch, from a bundle."""

import json

import numpy as np
import pytest
import torch
import vfm_runtime
from safetensors.torch import save_file
from vfm_runtime.cli import main as runtime
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.embedding import EmbeddingPrediction, measure_cosine

import vfm
from tests.image_folders import write_image_folder
from vfm.bundle.export import export
from vfm.bundle.parity import ParityError, compare_embeddings
from vfm.models.backbone import Backbone, BackboneError
from vfm.training.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_image_folder(folder, num_classes=2, images_per_class=4, size=[(40, 30), (33, 64)], seed=0)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a backbone, as a file that stands for a download."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(Backbone("test_vit", pretrained=False).model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, weights):
    from lightning.pytorch import Trainer

    folder = tmp_path_factory.mktemp("run")
    task = vfm.ClassificationTask("test_vit", weights=weights, adapt="linear")
    trainer = Trainer(
        default_root_dir=folder, max_epochs=1, accelerator="cpu", logger=False,
        limit_train_batches=2, limit_val_batches=0, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=vfm.SyntheticData(num_workers=0, num_images=64))
    path = folder / "x.ckpt"
    trainer.save_checkpoint(path)
    return path


def test_a_checkpoint_and_its_backbone_embed_alike(checkpoint, weights, images):
    model, bare = (
        vfm.load(checkpoint, device="cpu"),
        vfm.load("test_vit", device="cpu", base=weights),
    )
    paths = sorted(images.rglob("*.png"))
    before = model.predict(paths[0]).scores
    widths = {}
    for source in ("pooled", "class_token", "patches", "layers"):
        vectors = model.embed(paths, source=source, batch_size=3)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(bare.embed(paths, source=source), vectors, atol=1e-5)
        assert model.embedding == bare.embedding  # the fingerprint among it
        widths[source] = vectors.shape[1]
    assert widths["layers"] > widths["pooled"]
    np.testing.assert_array_equal(model.predict(paths[0]).scores, before)
    plain = model.embed(paths[0], normalize=False)
    assert plain.ndim == 1
    assert measure_cosine(plain, model.embed(paths[0])) == pytest.approx(1)
    assert abs(np.linalg.norm(plain) - 1) > 0.01


@pytest.mark.parametrize("source", ["pooled", "layers"])
def test_a_bundle_embeds_beside_its_labels(source, checkpoint, images, tmp_path, capsys):
    bundle = export(
        checkpoint, images=images, out=tmp_path / "bundle", num_images=8, embedding=source
    )
    model, paths = vfm_runtime.load(bundle, device="cpu"), sorted(images.rglob("*.png"))
    torch_side = vfm.load(checkpoint, device="cpu")
    cosines = measure_cosine(torch_side.embed(paths, source=source), model.embed(paths))
    assert cosines.min() > 0.9999
    assert model.embedding == torch_side.embedding
    assert model.predict(paths[0]).label == torch_side.predict(paths[0]).label
    assert runtime(["check", str(bundle), "--device", "cpu"]) == 0
    assert runtime(["info", str(bundle), "--device", "cpu"]) == 0
    assert f"embedding  {source}, of norm 1" in capsys.readouterr().out


def test_a_bundle_of_a_bare_backbone_embeds(weights, images, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    words = ["export", "test_vit", "--base", weights, "--images", images, "-o", bundle]
    from vfm.cli import main

    assert main([*map(str, words), "--num_images", "8", "--embedding", "patches"]) == 0
    path = next(images.rglob("*.png"))
    model, bare = vfm_runtime.load(bundle, device="cpu"), vfm.load("test_vit", base=weights)
    expected = bare.embed(path, source="patches")
    assert measure_cosine(model.embed(path), expected) > 0.9999
    prediction = model.predict(path)
    assert isinstance(prediction, EmbeddingPrediction)
    np.testing.assert_array_equal(prediction.vector, model.embed([path])[0])
    assert model.embedding == bare.embedding
    assert runtime(["check", str(bundle), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert runtime(["predict", str(bundle), str(path), "--json", "--device", "cpu"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["task"] == "embedding"
    assert len(answer["vector"]) == model.embed(path).size


@pytest.mark.slow
def test_what_cannot_embed_says_so(checkpoint, images, tmp_path):
    bundle = export(checkpoint, images=images, out=tmp_path / "bundle", num_images=8)
    assert "embedding" not in json.loads((bundle / "vfm.json").read_text())["contract"]
    model = vfm_runtime.load(bundle, device="cpu")
    assert set(model.output_shapes) == {"scores"}  # costs nothing where nobody asked for it
    with pytest.raises(OptionError, match=r"gives no embeddings\. Export .*--embedding pooled"):
        model.embed(next(images.rglob("*.png")))
    loaded = vfm.load(checkpoint, device="cpu")
    with pytest.raises(OptionError, match=r"'cls'\. Choices: pooled, class_token, patches, layers"):
        loaded.embed(next(images.rglob("*.png")), source="cls")
    with pytest.raises(OptionError, match="no images to embed"):
        loaded.embed([])
    with pytest.raises(BackboneError, match=r"no class token .* Choices: pooled, patches"):
        vfm.EmbeddingTask("test_convnext", "class_token", pretrained=False)
    with pytest.raises(OptionError, match="nothing to train"):
        vfm.EmbeddingTask("test_vit", pretrained=False).take_labels(vfm.SyntheticData())
    with pytest.raises(CheckpointError, match="no checkpoint test_vitt"):
        vfm.load("test_vitt")


@pytest.mark.slow
def test_a_bundle_that_embeds_otherwise_is_noticed(checkpoint, images, tmp_path, monkeypatch):
    bundle = export(
        checkpoint, images=images, out=tmp_path / "bundle", num_images=8, embedding="pooled"
    )
    model, paths = vfm.load(checkpoint, device="cpu"), sorted(images.rglob("*.png"))[:2]
    other = vfm_runtime.load(bundle, device="cpu")
    compare_embeddings(model, other, paths)
    run = other.compute_outputs
    monkeypatch.setattr(
        other, "compute_outputs", lambda x: {k: v + (v > 0) for k, v in run(x).items()}
    )
    with pytest.raises(ParityError, match="cosine of the two vectors"):
        compare_embeddings(model, other, paths)
