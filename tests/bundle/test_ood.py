"""Where the training images lie: the fit, the limit of distances, and drift through a real model."""

from __future__ import annotations

import logging

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.drift.monitor import DriftMonitor
from vfm_runtime.drift.reference import DriftReference
from vfm_runtime.tasks.confidence import ConfidenceRules

from tests.image_folders import write_image_folder
from tests.tasks.tiny import fit, vit
from vfm.bundle.onnx_graphs import ExportedModel
from vfm.bundle.ood import (
    Reference,
    ReferenceFitError,
    embed,
    fit_distance_limit,
    fit_drift_reference,
    fit_ood,
    fit_reference,
    open_training,
    score_ood,
)
from vfm.data import FolderData
from vfm.models.heads import DetrHead
from vfm.tasks import DetectionTask
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.labeled_images import LabeledImages, open_images

INSTEAD = "The reference is fitted on every second validation image"


def vectors(seed, number, width=40, spread=None):
    """Embeddings whose spread falls from direction to direction."""
    random = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(np.random.default_rng(99).normal(size=(width, width)))
    spread = 3.0 * 0.8 ** np.arange(width) if spread is None else spread
    return (random.normal(size=(number, width)) * spread @ turned + 5).astype(np.float32)


def test_components_have_a_spread_of_one_and_distances_a_mean_square_of_one():
    train = vectors(0, 2000)
    reference = fit_reference(train, 6)
    found = score_ood(reference, train)
    assert found["components"].shape == (2000, 6)
    np.testing.assert_allclose(found["components"].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(found["components"].T), np.eye(6), atol=1e-3)
    assert (found["distances"] ** 2).mean() == pytest.approx(1, abs=1e-3)
    others = score_ood(reference, vectors(1, 2000))["distances"]
    assert (others**2).mean() == pytest.approx(1, abs=0.05)


def test_distances_grow_along_and_outside_of_the_axes():
    reference = fit_reference(vectors(0, 1000), 4)
    one = vectors(1, 1)
    step = reference.axes[0] / np.square(reference.axes[0]).sum()
    assert score_ood(reference, one + 6 * step)["components"][0, 0] == pytest.approx(
        score_ood(reference, one)["components"][0, 0] + 6, abs=1e-3
    )
    assert score_ood(reference, one + 6 * step)["distances"] > 2
    away = np.random.default_rng(0).normal(size=40)
    away -= np.linalg.lstsq(reference.axes.T, away, rcond=None)[0] @ reference.axes
    moved = score_ood(reference, (one + 10 * away / np.linalg.norm(away)).astype(np.float32))
    assert moved["distances"] > 2
    np.testing.assert_allclose(
        moved["components"], score_ood(reference, one)["components"], atol=1e-3
    )


def test_the_fit_does_not_hang_on_the_order_of_images():
    train = vectors(0, 300)
    first, second = fit_reference(train), fit_reference(train[::-1])
    np.testing.assert_allclose(first.axes, second.axes, atol=1e-3)


@pytest.mark.parametrize(
    ("number", "width", "asked", "found"),
    [(1000, 40, 16, 16), (1000, 8, 16, 7), (60, 40, 16, 15), (60, 400, 30, 15)],
)
def test_there_are_no_more_axes_than_images_tell_of(number, width, asked, found):
    train = vectors(0, number, width, np.linspace(2, 1, width))
    reference = fit_reference(train, asked)
    assert reference.axes.shape == (found, width)
    assert reference.residual > 0
    assert np.isfinite(score_ood(reference, train)["distances"]).all()


def test_embeddings_of_few_directions():
    # All but three of forty numbers are the same everywhere.
    train = vectors(0, 200, 40, np.array([1.0] * 3 + [0.0] * 37))
    reference = fit_reference(train)
    assert len(reference.axes) == 2
    assert score_ood(reference, train)["distances"].max() < 10


def test_what_no_reference_is_fitted_on():
    with pytest.raises(ReferenceFitError, match=r"shape \[49, 40\], too few .* at least 50 images"):
        fit_reference(vectors(0, 49))
    with pytest.raises(ReferenceFitError, match="of the 100 images are all alike"):
        fit_reference(np.ones((100, 8), np.float32))
    broken = vectors(0, 100)
    broken[3, 4] = np.nan
    with pytest.raises(ReferenceFitError, match="hold NaN or infinite numbers"):
        fit_reference(broken)


@pytest.mark.parametrize(("number", "rate"), [(60, 1 / 61), (99, 0.01), (500, 0.01)])
def test_images_of_the_same_kind_rarely_lie_beyond_the_limit(number, rate, caplog):
    random = np.random.default_rng(0)
    beyond = [
        (random.chisquare(5, 2000) > fit_distance_limit(random.chisquare(5, number))).mean()
        for _ in range(300)
    ]
    assert np.mean(beyond) == pytest.approx(rate, abs=0.004)
    told = "60 images are too few for a limit that 1.0 % of such images pass: up to 1.6 % do"
    assert (told in caplog.text) == (number == 60)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    root = write_image_folder(folder / "images", images_per_class=120, size=(32, 32))
    data = FolderData(
        root, augment="none", batch_size=32, num_workers=0, val_fraction=0.4, test_fraction=0.3
    )
    L.seed_everything(0)
    fit(folder, vit(), data, max_epochs=6)
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def checkpoint(run):
    return Checkpoint.open(run)


@pytest.fixture(scope="module")
def task(checkpoint):
    return checkpoint.task


@pytest.fixture(scope="module")
def images(checkpoint):
    return checkpoint.open_validation()


@pytest.fixture(scope="module")
def placed(checkpoint, task, images):
    return fit_ood(task, images, open_training(checkpoint, INSTEAD))


@pytest.fixture(scope="module")
def contract(task, placed):
    return Contract(
        task=task.kind,
        labels=task.labels,
        preprocess=task.preprocess.to_dict(),
        backbone="toy",
        license=None,
        versions={},
        rules=ConfidenceRules(reference=True, max_distance=placed.max_distance).to_dict(),
    )


def opened_split(data, split, task):
    return open_images(
        LabeledImages.select_splits(data, [split]), task.preprocess, needs_geometry=False
    )


def test_it_is_fitted_on_training_images_and_measured_on_others(task, images, placed):
    assert placed.held_out.tolist() == list(range(images.num_images)) == list(range(144))
    train = images.images.source.data
    train.setup()
    opened = opened_split(train, "train", task)
    assert len(opened.inputs["pixels"]) == 108
    own = fit_reference(embed(task, [opened.inputs]))
    np.testing.assert_allclose(own.mean, placed.reference.mean, atol=1e-4)
    np.testing.assert_allclose(own.axes, placed.reference.axes, rtol=0.01, atol=0.01)
    scores = score_ood(placed.reference, embed(task, [images.images.inputs]))
    beyond = scores["distances"] > placed.max_distance
    assert beyond.sum() <= 1


def test_training_images_that_are_gone(run, task, images, tmp_path, caplog):
    root = images.images.source.data.root
    away = root.rename(tmp_path / "away")
    try:
        found = fit_ood(task, images, open_training(Checkpoint.open(run), INSTEAD))
    finally:
        away.rename(root)
    every_second = fit_reference(embed(task, [{"pixels": images.images.inputs["pixels"][::2]}]))
    np.testing.assert_allclose(every_second.mean, found.reference.mean, atol=1e-4)
    assert found.held_out.tolist() == list(range(1, 144, 2))
    assert "fitted on every second validation image, since the training images" in caplog.text


def test_the_graph_measures_what_was_fitted(task, images, placed, contract):
    pixels = torch.from_numpy(images.images.inputs["pixels"][:20])
    with torch.inference_mode():
        graph = ExportedModel(contract, {"": task}, placed.reference).eval()(pixels)
    scores = score_ood(placed.reference, embed(task, [{"pixels": pixels.numpy()}]))
    for name in ("components", "distances"):
        np.testing.assert_allclose(graph[name], scores[name], atol=1e-3)


def outputs_of(task, reference: Reference, pixels):
    with torch.inference_mode():
        scores = task.answer(torch.from_numpy(pixels))["scores"].numpy()
    return {"scores": scores, **score_ood(reference, embed(task, [{"pixels": pixels}]))}


def dark(pixels):
    return (pixels * 0.3).astype(np.uint8)


def blurred(pixels):
    images = [Image.fromarray(one).filter(ImageFilter.GaussianBlur(6)) for one in pixels]
    return np.stack([np.array(one) for one in images])


def test_dark_and_blurred_images_are_found(task, images, placed, contract, caplog, tmp_path):
    caplog.set_level(logging.ERROR)
    outputs = outputs_of(task, placed.reference, images.images.inputs["pixels"])
    made = fit_drift_reference(outputs, contract, placed.held_out)
    assert made.num_images == 144
    assert set(made.labels) == {"labels"}
    assert set(made.histograms) == {
        *(f"component_{k}" for k in range(len(placed.reference.axes))),
        *("distance", "score"),
    }
    made.write(tmp_path)
    assert DriftReference.load(tmp_path) == made
    data = images.images.source.data
    data.setup("test")
    pixels = opened_split(data, "test", task).inputs["pixels"]
    drifted = []
    for change in (np.asarray, dark, blurred):
        monitor = DriftMonitor(made, window=100)
        monitor.add(outputs_of(task, placed.reference, change(pixels)))
        drifted.append(monitor.report().drifted)
    assert drifted == [False, True, True]


def test_of_a_detector_the_mean_of_the_places_counts():
    task = DetectionTask(
        "vit_tiny_patch16_224",
        head=DetrHead(num_queries=5, num_groups=1, num_layers=1),
        pretrained=False,
        image_size=64,
        backbone_args={"embed_dim": 96, "depth": 2, "num_heads": 3, "patch_size": 8},
    )
    task.head.prepare(task.backbone.info, ("ant", "bee"))
    pixels = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    found = embed(task.eval(), [{"pixels": pixels[:40]}, {"pixels": pixels[40:]}])
    assert found.shape == (60, 96)
    assert found.dtype == np.float32
    with torch.inference_mode():
        features = task.backbone(task.preprocess.normalize(torch.from_numpy(pixels)))
    np.testing.assert_allclose(found, features.tokens.mean(1), atol=1e-5)
    assert fit_reference(found).axes.shape == (15, 96)
