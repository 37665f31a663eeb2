"""Tiny tasks, data and trainers for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from vfm.data import SyntheticData
from vfm.tasks import ClassificationTask, Optim

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
LABELS = ["class_0", "class_1", "class_2"]


def vit(**changes: Any) -> ClassificationTask:
    settings: dict[str, Any] = {
        "backbone": "vit_tiny_patch16_224",
        "pretrained": False,
        "image_size": 32,
        "backbone_args": VIT,
        "optim": Optim(lr=3e-3),
    }
    return ClassificationTask(**(settings | changes))


def shapes(**changes: Any) -> SyntheticData:
    settings: dict[str, Any] = {"num_classes": 3, "num_images": 96, "batch_size": 16}
    return SyntheticData(**(settings | {"augment": "none"} | changes))


def trainer(root: Path, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    return Trainer(default_root_dir=root, **(settings | changes))


def fit(root: Path, task: ClassificationTask, data: Any = None, **changes: Any) -> Trainer:
    made = trainer(root, **changes)
    made.fit(task, datamodule=data or shapes())
    return made


def stored(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def require_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


class Steep(ClassificationTask):
    def compute_losses(self, raw: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {name: 1000 * loss for name, loss in super().compute_losses(raw, batch).items()}
