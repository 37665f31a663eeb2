"""Switches of a task: what learns, averaging, early stopping, compiling, mixing, class weights."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping

import vfm
from tests.tasks.tiny import fit, require_equal, shapes, stored, trainer, vit
from vfm.data.mixing import Mixing
from vfm.data.records import Record
from vfm.losses import FocalLoss
from vfm.models.heads import MLPHead
from vfm.tasks import ClassificationTask, Optim
from vfm.tasks.labels import LabelError, compute_class_weights
from vfm.training.option_checks import CompileError
from vfm.types import Labels


def conv(**changes: Any) -> ClassificationTask:
    """A net with batch norms."""
    return vit(backbone="test_efficientnet", backbone_args=None, **changes)


def test_a_frozen_backbone_stays_as_it_was(tmp_path: Path) -> None:
    task = conv(adapt="linear", head=MLPHead(hidden=16), optim=Optim(lr=3e-2))
    before = copy.deepcopy(task.backbone.state_dict())
    run = fit(tmp_path, task, max_epochs=4)
    require_equal(before, task.backbone.state_dict())  # batch norms' statistics too
    assert run.callback_metrics["train/loss"] < 1.05
    optimizer = run.optimizers[0]
    learning = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert learning == {id(p) for p in task.head.parameters()}


def test_a_frozen_backbone_is_frozen_again_after_loading(tmp_path: Path) -> None:
    fit(tmp_path, conv(adapt="linear"))
    task = ClassificationTask.load(tmp_path / "checkpoints" / "best.ckpt")
    assert not any(p.requires_grad for p in task.backbone.parameters())
    assert not task.train().backbone.model.training
    assert task.head.training


class Watch(Callback):
    """Keeps the weights of every step, and those that validation saw."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.steps.append(pl_module.head.linear.weight.detach().clone())

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.validated.append(pl_module.head.linear.weight.detach().clone())


def average(steps: list[torch.Tensor], decay: float) -> torch.Tensor:
    mean = steps[0].clone()
    for number, weights in enumerate(steps[1:], start=1):
        keep = min(decay, (1 + number) / (10 + number))
        mean = keep * mean + (1 - keep) * weights
    return mean


def test_the_average_is_validated_saved_and_kept(tmp_path: Path) -> None:
    watch = Watch()
    task = vit(optim=Optim(lr=1e-2, ema=0.6))
    fit(tmp_path, task, max_epochs=3, callbacks=[watch])
    expected = average(watch.steps, 0.6)
    assert not torch.allclose(expected, watch.steps[-1], atol=1e-4)
    torch.testing.assert_close(watch.validated[-1], expected)
    torch.testing.assert_close(task.head.linear.weight.detach(), expected)
    saved = ClassificationTask.load(tmp_path / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(saved.head.linear.weight.detach(), expected)


def test_resuming_with_an_average_is_exact(tmp_path: Path) -> None:
    optim = Optim(lr=1e-2, ema=0.8)
    L.seed_everything(3)
    fit(tmp_path / "whole", vit(optim=optim), max_epochs=4)
    L.seed_everything(3)
    folder = tmp_path / "half"
    # The schedule is that of four epochs.
    fit(folder, vit(optim=optim), max_epochs=4, callbacks=[StopAfter(2)])
    checkpoint = folder / "checkpoints" / "last.ckpt"
    shutil.copy(checkpoint, tmp_path / "half.ckpt")
    run = trainer(tmp_path / "rest", max_epochs=4)
    run.fit(vit(optim=optim), datamodule=shapes(), ckpt_path=tmp_path / "half.ckpt")
    whole = stored(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    rest = stored(tmp_path / "rest" / "checkpoints" / "last.ckpt")
    require_equal(whole["state_dict"], rest["state_dict"])
    require_equal(whole["current_model_state"], rest["current_model_state"])


class StopAfter(Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_training_stops_when_validation_no_longer_improves(tmp_path: Path) -> None:
    # A rate that changes nothing: the first validation stays the best.
    run = fit(tmp_path, vit(patience=2, optim=Optim(lr=1e-12)), max_epochs=20)
    assert run.current_epoch == 3
    stoppers = [c for c in run.callbacks if isinstance(c, EarlyStopping)]
    assert [s.monitor for s in stoppers] == ["val/loss"]  # of 24 images


@pytest.mark.slow
def test_compiled_training_learns_and_saves_plain_weights(tmp_path: Path) -> None:
    torch._dynamo.reset()
    task = vit(compile=True, optim=Optim(lr=3e-3, ema=0.5))
    run = fit(tmp_path, task, max_epochs=3)
    assert task.backbone._compiled_call_impl is not None
    assert run.callback_metrics["train/loss"] < 1.1
    saved = ClassificationTask.load(tmp_path / "checkpoints" / "best.ckpt")
    assert saved.backbone._compiled_call_impl is None
    assert not any("_orig_mod" in name for name in saved.state_dict())


def test_compiling_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompileError, match=r"needs a C\+\+ compiler, but 'no-such-compiler'"):
        fit(tmp_path, vit(compile=True))


def test_mixed_batches_train_and_resume_the_same(tmp_path: Path) -> None:
    task = vit(mixing=Mixing(mixup=0.4, cutmix=1.0), loss=FocalLoss())
    run = fit(tmp_path, task, max_epochs=6)
    assert torch.isfinite(run.callback_metrics["train/loss"])
    assert run.callback_metrics["val/accuracy"] > 0.5


def counted(*labels: int, multilabel: bool = False) -> Any:
    data = shapes()
    data.setup("fit")
    kinds = [(k,) if multilabel else k for k in labels]
    data.records["train"] = [Record("x", k, str(n)) for n, k in enumerate(kinds)]
    data.multilabel = multilabel
    return data


def test_balanced_weights() -> None:
    weights = compute_class_weights("balanced", counted(0, 0, 0, 0, 1, 2))
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([0.5, 2.0, 2.0]))
    several = compute_class_weights("balanced", counted(0, 0, 0, 0, 1, 2, multilabel=True))
    assert several is not None
    torch.testing.assert_close(several, torch.tensor([0.5, 5.0, 5.0]))


def test_named_weights() -> None:
    weights = compute_class_weights({"class_1": 3.0}, counted(0, 1, 2))
    assert weights is not None
    assert weights.tolist() == [1, 3, 1]
    with pytest.raises(LabelError, match=r"class_weights names \['klass'\], which are no classes"):
        compute_class_weights({"klass": 1.0}, counted(0, 1, 2))
    with pytest.raises(
        LabelError, match=r"class_weights holds \{'class_1': 0\}\. Give numbers abov"
    ):
        compute_class_weights({"class_1": 0}, counted(0, 1, 2))


def test_weights_count_in_training_alone(tmp_path: Path) -> None:
    task = vit(class_weights={"class_1": 5.0})
    fit(tmp_path, task)
    raw, batch = {"logits": torch.zeros(3, 3)}, {"target": Labels(torch.tensor([0, 1, 2]))}
    even = 3 * torch.log(torch.tensor(3.0))
    torch.testing.assert_close(task.eval().compute_loss(raw, batch), even)
    torch.testing.assert_close(task.train().compute_loss(raw, batch), even * 7 / 3)


def test_everything_is_in_the_checkpoint(tmp_path: Path) -> None:
    task = vit(
        head=vfm.AttentionPoolHead(num_heads=4),
        loss=FocalLoss(gamma=1.5),
        mixing=Mixing(cutmix=0.5),
        class_weights="balanced",
        optim=Optim(layer_decay=0.8, ema=0.9),
    )
    fit(tmp_path, task)
    saved = ClassificationTask.load(tmp_path / "checkpoints" / "best.ckpt")
    assert saved.spec == task.spec
    assert isinstance(saved.criterion, FocalLoss)
    assert saved.criterion.gamma == 1.5
    assert saved.mixing == Mixing(cutmix=0.5)
    assert saved.optim.layer_decay == 0.8
