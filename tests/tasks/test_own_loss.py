"""A loss of the user's, in a file of the user's."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vfm
from tests.tasks.tiny import fit, shapes, trainer, vit
from vfm.cli import main
from vfm.losses import DetectionLoss, Loss
from vfm.tasks import BaseTask
from vfm.tasks.labels import LabelError
from vfm.types import Labels, require_target

LOSS = '''
from torch.nn import functional as F

from vfm import Loss
from vfm.types import Labels, require_target


class MyLoss(Loss):
    """Cross-entropy, and a penalty of large logits."""

    def __init__(self, penalty: float = 0.1) -> None:
        super().__init__()
        self.penalty = penalty

    def forward(self, raw, batch):
        labels = require_target(batch, Labels, self)
        return {
            "entropy": F.cross_entropy(raw["logits"], labels.label, reduction="sum"),
            "penalty": self.penalty * raw["logits"].square().sum(),
        }
'''


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trained by the command line with a loss of the user's."""
    root = tmp_path_factory.mktemp("own_loss")
    (root / "myloss.py").write_text(LOSS, encoding="utf-8")
    sys.path.insert(0, str(root))
    options = {
        "--model": "ClassificationTask",
        "--model.backbone": "vit_tiny_patch16_224",
        "--model.pretrained": "false",
        "--model.image_size": "32",
        "--model.backbone_args": '{"embed_dim": 32, "depth": 2, "num_heads": 2}',
        "--model.loss": "myloss.MyLoss",
        "--model.loss.penalty": "0.5",
        "--data": "SyntheticData",
        "--data.num_images": "64",
        "--trainer.max_epochs": "1",
        "--trainer.log_every_n_steps": "1",
        "--trainer.accelerator": "cpu",
        "--trainer.default_root_dir": str(root / "runs"),
        "--trainer.enable_progress_bar": "false",
        "--trainer.enable_model_summary": "false",
    }
    assert main(["fit", *(word for pair in options.items() for word in pair)]) == 0
    (path,) = root.rglob("best.ckpt")
    yield path
    sys.path.remove(str(root))
    sys.modules.pop("myloss", None)


def test_it_is_trained_with_and_its_terms_are_logged(checkpoint: Path) -> None:
    with (checkpoint.parents[1] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"train/entropy", "train/penalty", "val/loss"} <= set(rows[0])
    assert any(float(row["val/loss"]) > 0 for row in rows if row["val/loss"])


def test_the_checkpoint_brings_it_back(checkpoint: Path) -> None:
    task = BaseTask.load(checkpoint, trust=["myloss"])
    assert type(task.criterion).__name__ == "MyLoss"
    assert task.spec["init_args"]["loss"] == {
        "class_path": "myloss.MyLoss",
        "init_args": {"penalty": 0.5},
    }


class Squares(Loss):
    """The squares of the logits: each image has its own, though it only says their sum."""

    def forward(self, raw: Any, batch: Any) -> dict[str, torch.Tensor]:
        require_target(batch, Labels, self)
        return {"squares": raw["logits"].square().sum()}


def test_the_loss_of_each_image_is_that_of_a_batch_of_one() -> None:
    logits = torch.randn(4, 3)
    batch: Any = {
        "image": torch.zeros(4, 2, 2, 3),
        "target": Labels(torch.zeros(4, dtype=torch.int64)),
        "index": torch.arange(4),
        "name": list("abcd"),
        "skipped": [],
    }
    losses = Squares().per_image({"logits": logits}, batch)
    torch.testing.assert_close(losses, logits.square().sum(1))


def test_class_weights_need_a_loss_that_takes_them(tmp_path: Path) -> None:
    with pytest.raises(
        LabelError,
        match=r"Squares takes no class_weights, which are balanced\. Derive it from vfm\.Cl",
    ):
        fit(tmp_path, vit(loss=Squares(), class_weights="balanced"))


def test_a_loss_of_another_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="DetectionLoss reads Objects, but the data gives Labels"):
        trainer(tmp_path).fit(vit(loss=DetectionLoss()), datamodule=shapes())


def test_all_losses_have_one_base() -> None:
    named = [vfm.CrossEntropy, vfm.FocalLoss, vfm.BinaryCrossEntropy, vfm.AsymmetricLoss]
    assert all(issubclass(loss, vfm.ClassificationLoss) for loss in named)
    assert all(issubclass(k, vfm.Loss) for k in (*named, vfm.DetectionLoss, vfm.DeepfakeLoss))
