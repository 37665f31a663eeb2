"""One fingerprint for checkpoint, bundle and store, and golden features that other libraries must reproduce."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import vfm_runtime

import vfm
from tests.image_folders import write_image_folder
from tests.tasks.tiny import fit, vit
from vfm.bundle.export import export
from vfm.tasks import BaseTask
from vfm.training.checkpoint import KEY, read_checkpoint
from vfm.training.ema import WeightEMA
from vfm.training.fingerprint import compute_fingerprint, compute_golden_features, generate_images


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of averaged weights, which differ from those that were trained on."""
    root = tmp_path_factory.mktemp("averaged")
    callbacks = [WeightEMA(0.5)]
    trained = fit(root, vit(adapt="lora"), max_steps=4, callbacks=callbacks)
    trained.save_checkpoint(root / "averaged.ckpt")
    return root / "averaged.ckpt"


def rewrite(path: Path, target: Path, **changes: Any) -> Path:
    content = read_checkpoint(path)
    content[KEY] |= changes
    torch.save(content, target)
    return target


def test_other_libraries_with_equal_features(averaged: Path, tmp_path: Path) -> None:
    assert BaseTask.load(averaged).feature_change is None
    other = rewrite(averaged, tmp_path / "old.ckpt", versions={"timm": "0.9", "torch": "2.0"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        change = BaseTask.load(other).feature_change
    assert change == pytest.approx(0, abs=1e-5)


def test_other_libraries_with_other_features(averaged: Path, tmp_path: Path) -> None:
    entry = read_checkpoint(averaged)[KEY]
    golden = {name: [1.1 * v for v in values] for name, values in entry["golden_features"].items()}
    versions = {"timm": "0.9", "torch": "2.0"}
    path = rewrite(averaged, tmp_path / "old.ckpt", versions=versions, golden_features=golden)
    with pytest.warns(UserWarning, match="computes other features here") as caught:
        task = BaseTask.load(path)
    assert task.feature_change == pytest.approx(0.1 / 1.1)
    text = str(caught[0].message)
    assert f"{path}: its backbone vit_tiny_patch16_224 " in text
    assert "where it was trained (timm 0.9, torch 2.0): they differ by 9.1% on generated" in text
    assert "Install those versions, or measure it again with `vfm test`." in text


def test_a_checkpoint_without_golden_features(averaged: Path, tmp_path: Path) -> None:
    path = rewrite(averaged, tmp_path / "old.ckpt", golden_features=None, versions={})
    assert BaseTask.load(path).feature_change is None


def test_one_fingerprint(averaged: Path, tmp_path: Path) -> None:
    images = write_image_folder(tmp_path / "images", num_classes=2, images_per_class=2)
    bundle = tmp_path / "bundle"
    export(averaged, out=bundle, images=images, num_images=4, embedding="pooled")
    fingerprint = read_checkpoint(averaged)[KEY]["fingerprint"]
    model = vfm.load(averaged)
    spec = vfm_runtime.load(bundle).embedding
    assert spec is not None
    assert spec.fingerprint == model.select_embedding("pooled").fingerprint == fingerprint
    assert model.select_embedding("patches").fingerprint == fingerprint
    assert f"preprocessing: {fingerprint}" in (bundle / "card.md").read_text()
    wider = replace(model.task.preprocess, bit_depth=12)
    assert compute_fingerprint(model.task.backbone, wider) != fingerprint


def test_modes_and_random_numbers_stay() -> None:
    task = vit(backbone="test_efficientnet", backbone_args=None).train()
    norm = next(m for m in task.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    mean, state = norm.running_mean, torch.get_rng_state()
    assert mean is not None
    before = mean.clone()
    first = compute_golden_features(task.backbone, task.preprocess)
    assert first is not None
    assert first == compute_golden_features(task.backbone, task.preprocess)
    assert task.backbone.training
    assert not norm.training
    assert torch.equal(mean, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_has_no_golden_features() -> None:
    task = vit().half()
    assert compute_golden_features(task.backbone, task.preprocess) is None


def test_generated_images() -> None:
    images = generate_images((3, 5))
    assert images.shape == (2, 3, 5, 3)
    assert images.dtype == torch.uint8
    assert images[0, 2, 4].tolist() == [84, 169, 254]
