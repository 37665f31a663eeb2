"""Tiny tasks, data and trainers for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from vfm.data import SyntheticData
from vfm.tasks import BaseTask, ClassificationTask, Optim
from vfm.training.nonfinite import NonFiniteLossError, replay

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
CLI_VIT = {
    "--model": "ClassificationTask",
    "--model.backbone": "vit_tiny_patch16_224",
    "--model.pretrained": "false",
    "--model.image_size": "32",
    "--model.backbone_args": json.dumps(VIT),
    "--data": "SyntheticData",
    "--data.num_classes": "3",
    "--data.num_images": "96",
    "--data.batch_size": "16",
    "--trainer.accelerator": "cpu",
    "--trainer.enable_progress_bar": "false",
    "--trainer.enable_model_summary": "false",
}
"""Options of the command line for `vit()` on `shapes(augment="auto")`."""
LABELS = ["class_0", "class_1", "class_2"]


def vit(**changes: Any) -> ClassificationTask:
    settings: dict[str, Any] = {
        "backbone": "vit_tiny_patch16_224",
        "pretrained": False,
        "image_size": 32,
        "backbone_args": VIT,
        "optim": Optim(lr=3e-3),
        "min_steps": 0,  # not as many as adapting weights to few images takes
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


def fit(
    root: Path,
    task: ClassificationTask,
    data: Any = None,
    *,
    ckpt_path: str | None = None,
    **changes: Any,
) -> Trainer:
    made = trainer(root, **changes)
    made.fit(task, datamodule=data or shapes(), ckpt_path=ckpt_path)
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


class Spoil(Callback):
    """Changes the third image of the second batch."""

    def __init__(self, change: Callable[[Any, int], None]) -> None:
        self.change = change
        self.batch: Any = None

    def on_train_batch_start(self, run: Any, task: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.batch = batch
            self.change(batch, 2)


def require_report(
    root: Path, task: BaseTask, data: Any, change: Callable[[Any, int], None], **load: Any
) -> dict[str, float]:
    """A loss that one image makes no number ends in a report of it alone, and can be replayed from what was saved.

    Args:
        change: Spoils the image at a position of a batch, such that its loss is no number.
        **load: How the checkpoint is loaded.

    Returns:
        The losses of the step, done again.
    """
    spoil = Spoil(change)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer(root, callbacks=[spoil]).fit(task, datamodule=data)
    names = spoil.batch["name"]
    assert "The loss is nan in epoch 0, step 1" in str(caught.value)
    assert "It is not finite for these images alone" in str(caught.value)
    assert f"Images: {names[2]}.\n" in str(caught.value)
    again = replay(root / "nonfinite", **load)
    losses = again.images
    assert list(losses) == names
    assert len(losses) > 3
    finite = [bool(torch.tensor(loss).isfinite()) for loss in losses.values()]
    assert finite == [position != 2 for position in range(len(names))]
    assert torch.tensor([*again.step.values()]).isnan().any()
    return again.step
