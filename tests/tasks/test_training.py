from __future__ import annotations

import csv
import shutil
import socket
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

import vfm
from tests.tasks.tiny import (
    CLI_VIT,
    LABELS,
    VIT,
    Steep,
    fit,
    require_equal,
    shapes,
    stored,
    trainer,
    vit,
)
from vfm.cli import main
from vfm.tasks import BaseTask, ClassificationTask, Optim


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: L.LightningModule) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss_epoch"]))


class Norms(Callback):
    """Norm of all gradients as the optimiser met them."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        norms = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
        self.values.append(float(torch.stack(norms).norm()))


class Stop(Callback):
    """Ends a training like a power cut, at the start of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise PowerCutError


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "test_efficientnet"])
def test_loss_falls(tmp_path: Path, backbone: str) -> None:
    L.seed_everything(0)
    losses = Losses()
    arguments = VIT if backbone.startswith("vit") else None
    task = vit(backbone=backbone, backbone_args=arguments)
    made = fit(tmp_path, task, max_epochs=6, callbacks=[losses], enable_checkpointing=False)
    assert losses.values[-1] < 0.7 * losses.values[0]
    # At the middle of training the loss is already lower than at its start.
    assert losses.values[2] < losses.values[0]
    assert float(made.callback_metrics["val/accuracy"]) > 0.5
    assert not list(tmp_path.rglob("*.ckpt"))


def test_best_and_last_are_written_by_default(run: Path) -> None:
    assert sorted(p.name for p in run.rglob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    assert stored(run / "checkpoints" / "last.ckpt")["epoch"] == 3


def test_last_is_of_the_last_epoch_when_the_metric_does_not_rise(tmp_path: Path) -> None:
    # Of fewer images to validate, the last checkpoint would be the best.
    fit(tmp_path, vit(optim=Optim(lr=1e-12)), shapes(num_images=240), max_epochs=3)
    assert stored(tmp_path / "checkpoints" / "best.ckpt")["epoch"] == 0
    assert stored(tmp_path / "checkpoints" / "last.ckpt")["epoch"] == 2


def test_without_validation_only_last_is_written(tmp_path: Path) -> None:
    fit(tmp_path, vit(), max_epochs=2, limit_val_batches=0)
    assert [p.name for p in tmp_path.rglob("*.ckpt")] == ["last.ckpt"]
    assert stored(tmp_path / "checkpoints" / "last.ckpt")["epoch"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"filename": "mine"},
        {},
        {"monitor": "val/loss"},
        {"save_weights_only": True},
    ],
    ids=["filename", "folder alone", "monitor", "weights only"],
)
def test_a_users_own_checkpoint_callback_is_respected(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", **arguments)
    fit(tmp_path, vit(), callbacks=[own], limit_train_batches=1, limit_val_batches=1)
    found = list(tmp_path.rglob("*.ckpt"))
    assert len(found) == 1
    assert found[0].parent == tmp_path / "own"
    assert found[0].name not in ("best.ckpt", "last.ckpt")
    assert ("optimizer_states" in stored(found[0])) is ("save_weights_only" not in arguments)


def test_the_log_has_images_per_second(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(tmp_path, vit(), logger=logger, log_every_n_steps=1)
    with (Path(logger.log_dir) / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["images/s"]) for row in rows if row.get("images/s")]
    assert rates
    assert all(rate > 0 for rate in rates)
    for name in ("train/loss_step", "train/loss_epoch", "val/loss", "val/accuracy", "val/macro_f1"):
        assert any(row[name] for row in rows), name


def test_a_checkpoint_tells_everything(best: Path) -> None:
    entry = stored(best)["vfm"]
    assert entry["format"] == 1
    assert entry["model"]["class_path"] == "vfm.tasks.classification.task.ClassificationTask"
    arguments = entry["model"]["init_args"]
    assert arguments["backbone"] == "vit_tiny_patch16_224"
    assert arguments["backbone_args"] == VIT
    assert arguments["optim"]["lr"] == 3e-3
    assert arguments["optim"]["max_grad_norm"] == 1.0  # defaults too
    assert arguments["multilabel"] is False
    assert entry["labels"] == LABELS
    assert entry["preprocess"]["size"] == [32, 32]
    assert set(entry["versions"]) >= {"python", "vfm", "torch", "timm", "lightning"}
    assert entry["versions"]["vfm"] == vfm.__version__
    assert entry["seed"] == 5
    assert entry["recipe"] is None
    assert entry["weights"] is None
    data = shapes()
    assert entry["data"]["fingerprint"] == data.fingerprint()
    assert entry["data"]["spec"] == data.spec
    assert entry["data"]["splits"]["splits"]["train"]["images"] == 48


def test_a_checkpoint_can_be_rebuilt_in_every_way(
    best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    pixels = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    tasks = [ClassificationTask.load(best), BaseTask.load(str(best)), vfm.load(best).task]
    answers = []
    for task in tasks:
        assert type(task) is ClassificationTask
        assert not task.training
        assert list(task.labels) == LABELS
        require_equal(task.state_dict(), stored(best)["state_dict"])
        assert task.spec == stored(best)["vfm"]["model"]
        with torch.inference_mode():
            answers.append(task.answer(pixels)["scores"])
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    torch.testing.assert_close(answers[0].sum(1), torch.ones(5))


def test_the_outputs_of_training_come_back(tmp_path: Path) -> None:
    task = vit()
    fit(tmp_path, task)
    pixels = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = task.eval().answer(pixels)["scores"]
        again = BaseTask.load(tmp_path / "checkpoints" / "last.ckpt").answer(pixels)["scores"]
    assert torch.equal(expected, again)


def test_a_weights_file_is_not_needed_again(tmp_path: Path) -> None:
    weights = tmp_path / "backbone.pth"
    start = {key: value + 0.01 for key, value in vit().backbone.model.state_dict().items()}
    torch.save(start, weights)
    task = vit(pretrained=True, weights=weights)
    require_equal(task.backbone.model.state_dict(), start)
    fit(tmp_path, task)
    weights.unlink()
    path = tmp_path / "checkpoints" / "last.ckpt"
    loaded = BaseTask.load(path)
    require_equal(loaded.state_dict(), task.state_dict())
    assert loaded.spec["init_args"]["weights"] == str(weights)
    entry = stored(path)["vfm"]
    assert entry["weights"]["matched"] == entry["weights"]["total"] == len(start)
    assert entry["weights"]["source"] == str(weights)


def test_the_weights_of_a_checkpoint_start_another_task(best: Path) -> None:
    task = vit(weights=best)
    report = task.backbone.report
    assert report is not None
    assert (report.by, report.coverage) == ("name", 1.0)
    names = ("center", "is_normalized", "linear.weight", "linear.bias")
    assert report.unexpected == tuple(f"head.{name}" for name in names)
    own = task.backbone.state_dict()
    given = stored(best)["state_dict"]
    require_equal(own, {k.removeprefix("backbone."): given["backbone." + k] for k in own})


def test_the_command_line_and_python_make_the_same_checkpoint(tmp_path: Path) -> None:
    words = CLI_VIT | {
        "--model.optim.lr": "3e-3",
        "--seed_everything": "11",
        "--trainer.max_epochs": "2",
        "--trainer.default_root_dir": str(tmp_path / "cli"),
    }
    assert main(["fit", *(word for pair in words.items() for word in pair)]) == 0
    L.seed_everything(11)
    task, data = vit(), shapes(augment="auto")
    fit(tmp_path / "python", task, data, max_epochs=2, num_sanity_val_steps=2)
    for name in ("best.ckpt", "last.ckpt"):
        (typed,) = (tmp_path / "cli").rglob(name)
        first, second = stored(typed), stored(tmp_path / "python" / "checkpoints" / name)
        assert first.keys() == second.keys()
        assert first["vfm"].keys() == second["vfm"].keys()
        for key in first["vfm"].keys() - {"recipe"}:
            assert first["vfm"][key] == second["vfm"][key], key
        assert first["callbacks"].keys() == second["callbacks"].keys()
        assert first["epoch"] == second["epoch"]
        require_equal(first["state_dict"], second["state_dict"])
        assert first["vfm"]["recipe"]["model"]["init_args"]["optim"]["lr"] == 3e-3


@pytest.mark.parametrize(
    ("own", "trainers", "expected"),
    [("default", None, 1.0), (0.25, None, 0.25), (0.25, 0.5, 0.5), (None, 0.5, 0.5)],
)
def test_gradients_are_clipped(
    tmp_path: Path, own: Any, trainers: float | None, expected: float
) -> None:
    norms = Norms()
    optim = Optim() if own == "default" else Optim(max_grad_norm=own)
    task = Steep("test_efficientnet", pretrained=False, image_size=32, optim=optim)
    changes = {"limit_train_batches": 2, "limit_val_batches": 0, "enable_checkpointing": False}
    fit(tmp_path, task, callbacks=[norms], gradient_clip_val=trainers, **changes)
    assert norms.values == pytest.approx([expected] * 2, rel=1e-3)


def scaled() -> MixedPrecision:
    """What Lightning gives by the name of 16-mixed to GPUs alone."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))


@pytest.mark.parametrize(
    ("precision", "fused"),
    [({"precision": "bf16-mixed"}, True), ({"plugins": [scaled()]}, False)],
    ids=["bf16-mixed", "16-mixed"],
)
def test_gradients_are_clipped_in_mixed_precision(
    tmp_path: Path, precision: dict[str, Any], fused: bool
) -> None:
    norms = Norms()
    task = Steep(
        "test_efficientnet", pretrained=False, image_size=32, optim=Optim(max_grad_norm=0.25)
    )
    changes = {"limit_train_batches": 2, "limit_val_batches": 0, "enable_checkpointing": False}
    made = fit(tmp_path, task, callbacks=[norms], **precision, **changes)
    assert norms.values == pytest.approx([0.25] * 2, rel=1e-3)
    assert made.optimizers[0].defaults["fused"] is fused


class OwnFused(ClassificationTask):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), fused=True)


def test_scaled_gradients_of_a_fused_optimiser_are_not_clipped_wrongly(tmp_path: Path) -> None:
    task = OwnFused("test_efficientnet", pretrained=False, image_size=32)
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(tmp_path, task, plugins=[scaled()])


def test_gradients_are_left_alone_on_request(tmp_path: Path) -> None:
    norms = Norms()
    task = Steep(
        "test_efficientnet", pretrained=False, image_size=32, optim=Optim(max_grad_norm=None)
    )
    changes = {"limit_train_batches": 2, "limit_val_batches": 0, "enable_checkpointing": False}
    fit(tmp_path, task, callbacks=[norms], **changes)
    assert min(norms.values) > 10


def test_bf16_runs_on_the_cpu(tmp_path: Path) -> None:
    task = vit()
    made = fit(tmp_path, task, precision="bf16-mixed")
    assert np.isfinite(float(made.callback_metrics["val/loss"]))
    assert all(p.dtype == torch.float32 for p in task.parameters())
    loaded = BaseTask.load(tmp_path / "checkpoints" / "last.ckpt")
    require_equal(loaded.state_dict(), task.state_dict())


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "test_efficientnet"])
def test_resuming_equals_straight_training(tmp_path: Path, backbone: str) -> None:
    def task() -> ClassificationTask:
        arguments = VIT if backbone.startswith("vit") else None
        return vit(backbone=backbone, backbone_args=arguments)

    data = {"augment": "standard", "num_images": 64}
    L.seed_everything(3)
    fit(tmp_path / "straight", task(), shapes(**data), max_epochs=4)
    L.seed_everything(3)
    with pytest.raises(PowerCutError):
        fit(tmp_path / "cut", task(), shapes(**data), max_epochs=4, callbacks=[Stop(2)])
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert stored(last)["epoch"] == 1
    L.seed_everything(99)
    again = trainer(tmp_path / "cut", max_epochs=4)
    again.fit(task(), datamodule=shapes(**data), ckpt_path=last)
    first, second = stored(tmp_path / "straight" / "checkpoints" / "last.ckpt"), stored(last)
    assert first["epoch"] == second["epoch"] == 3
    assert first["global_step"] == second["global_step"]
    require_equal(first["state_dict"], second["state_dict"])
    one, two = first["optimizer_states"][0], second["optimizer_states"][0]
    for number, state in one["state"].items():
        require_equal(state, two["state"][number])
    assert first["lr_schedulers"] == second["lr_schedulers"]


def test_resuming_a_loaded_task_equals_a_new_one(tmp_path: Path) -> None:
    L.seed_everything(3)
    fit(tmp_path, vit(), max_epochs=1)
    last = tmp_path / "last.ckpt"
    shutil.copy(tmp_path / "checkpoints" / "last.ckpt", last)
    states = []
    for number, task in enumerate((vit(), ClassificationTask.load(last))):
        root = tmp_path / str(number)
        trainer(root, max_epochs=2).fit(task, datamodule=shapes(), ckpt_path=last)
        states.append(stored(root / "checkpoints" / "last.ckpt"))
    assert states[0]["epoch"] == 1
    require_equal(states[0]["state_dict"], states[1]["state_dict"])
