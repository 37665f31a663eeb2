"""Settings of fine-tuning that follow the size of the data: what they become, and that training keeps to them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.tasks.tiny import fit, require_equal, shapes, stored, trainer, vit
from vfm.spec import build
from vfm.tasks import ClassificationTask
from vfm.training import fine_tuning
from vfm.training.fine_tuning import Case, Settings, resolve_settings
from vfm.training.num_steps import extend_training
from vfm.training.optim import Optim
from vfm.training.precision import choose_precision

AUTO = Settings(Optim(), "auto", "auto", "auto", "auto")
FEW = Case(
    num_images=100,
    is_pretrained=True,
    has_batch_norm=True,
    can_solve_head=True,
    num_fine_stages=3,
    learning_rate=1e-4,
)


def conv(**changes: Any) -> ClassificationTask:
    """A net with batch norms."""
    return vit(
        backbone="test_efficientnet",
        backbone_args=None,
        **({"optim": Optim(), "min_steps": "auto"} | changes),
    )


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of the net's weights, with statistics of batch norms that no batch here has."""
    task = conv()
    for name, buffer in task.backbone.model.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.1
    path = tmp_path / "weights.pth"
    torch.save(task.backbone.model.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tuning, "MIN_STEPS", 8)


def test_few_images_and_pretrained_weights():
    settings = resolve_settings(AUTO, FEW)
    assert settings.lp_ft
    assert settings.norm_stats == "keep"
    assert settings.min_steps == 8
    assert settings.optim.backbone_factor == pytest.approx(0.1)
    assert settings.optim.lr == pytest.approx(3e-3)
    assert settings.optim.layer_decay is None
    assert settings.freeze_at == 3


def test_blocks_of_a_net_without_batch_norms_learn_at_their_own_rates():
    settings = resolve_settings(AUTO, FEW._replace(has_batch_norm=False))
    assert settings.norm_stats == "learn"
    assert settings.optim.layer_decay == pytest.approx(0.75)
    assert settings.optim.lr == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "changes", [{"is_pretrained": False}, {"num_images": fine_tuning.FEW_IMAGES}]
)
def test_a_random_start_and_many_images_are_trained_as_ever(changes: dict[str, Any]) -> None:
    settings = resolve_settings(AUTO, FEW._replace(**changes))
    plain = Optim(lr=1e-4, backbone_factor=1.0, layer_decay=None)
    assert (settings.optim, settings.min_steps) == (plain, 0)
    assert (settings.lp_ft, settings.norm_stats) == (False, "learn")
    # A random start has no stages to keep.
    assert settings.freeze_at == 0 or not changes.get("num_images")


def test_what_the_user_gave_stays():
    optim = Optim(lr=1e-2, backbone_factor=0.5, layer_decay=0.9)
    asked = Settings(optim, min_steps=3, lp_ft=False, norm_stats="learn", freeze_at=1)
    assert vars(resolve_settings(asked, FEW)) == vars(asked)
    off = replace(AUTO, optim=Optim(layer_decay=None))
    assert resolve_settings(off, FEW._replace(has_batch_norm=False)).optim.layer_decay is None


def test_a_rate_of_the_user_is_that_of_all_weights():
    settings = resolve_settings(replace(AUTO, optim=Optim(lr=2e-3)), FEW)
    assert (settings.optim.lr, settings.optim.backbone_factor) == (2e-3, 1.0)


def test_a_factor_of_the_user_changes_the_rate_of_the_head():
    settings = resolve_settings(replace(AUTO, optim=Optim(backbone_factor=0.01)), FEW)
    assert settings.optim.lr == pytest.approx(3e-2)


def test_statistics_of_batch_norms_are_kept_while_their_weights_learn(
    tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = conv(weights=weights)
    before = copy.deepcopy(task.backbone.state_dict())
    with caplog.at_level("INFO"):
        run = fit(tmp_path, task, max_epochs=1)
    after = task.backbone.state_dict()
    names = [name for name in before if name.endswith(("running_mean", "running_var"))]
    require_equal({n: before[n] for n in names}, {n: after[n] for n in names})
    assert not torch.equal(before["model.bn1.weight"], after["model.bn1.weight"])
    assert run.global_step == 9  # 3 batches an epoch
    assert "48 training images: 9 steps of 16, learning rate 0.0003 for the backbone" in caplog.text
    assert (
        "0.003 for the head, which is solved first; statistics of batch norms: keep" in caplog.text
    )


def test_statistics_of_batch_norms_learn_where_the_user_says_so(
    tmp_path: Path, weights: Path
) -> None:
    task = conv(weights=weights, norm_stats="learn", min_steps=0, lp_ft=False)
    before = copy.deepcopy(task.backbone.state_dict())
    run = fit(tmp_path, task)
    assert run.global_step == 3
    changed = task.backbone.state_dict()["model.bn1.running_mean"]
    assert not torch.equal(before["model.bn1.running_mean"], changed)


def test_a_random_start_solves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run = fit(tmp_path, conv())
    assert "Head solved" not in caplog.text
    assert run.global_step == 3


def test_training_starts_from_the_solved_head(tmp_path: Path, weights: Path) -> None:
    class Keep(Callback):
        def on_train_start(self, run: Any, task: Any) -> None:
            self.head = copy.deepcopy(task.head.state_dict())

    keep = Keep()
    still = Optim(lr=1e-12, weight_decay=0.0)
    task = conv(weights=weights, optim=still)
    fit(tmp_path, task, callbacks=[keep])
    ends = task.head.state_dict()
    weight = keep.head["linear.weight"]
    assert weight.abs().max() > 0.1  # it starts at 0.01
    torch.testing.assert_close(weight, ends["linear.weight"], atol=1e-6, rtol=0)


def test_a_head_that_was_trained_is_not_solved_anew(
    tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, conv(weights=weights))
    task = ClassificationTask.load(tmp_path / "checkpoints" / "last.ckpt")
    spec = task.spec["init_args"]
    assert (spec["lp_ft"], spec["norm_stats"], spec["min_steps"]) == (True, "keep", 8)
    assert spec["optim"]["lr"] == pytest.approx(3e-3)
    with caplog.at_level("INFO"):
        caplog.clear()
        fit(tmp_path / "again", task.train())
    assert "Head solved" not in caplog.text


def test_resuming_by_the_checkpoint_is_exact(tmp_path: Path, weights: Path) -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, run: Trainer, task: Any) -> None:
            run.should_stop = run.current_epoch == 0

    def start(name: str, task: Any, **changes: Any) -> Path:
        run = trainer(tmp_path / name, max_epochs=1, **changes)
        ckpt_path = tmp_path / "half.ckpt" if name == "rest" else None
        torch.manual_seed(5)
        run.fit(task, datamodule=shapes(), ckpt_path=ckpt_path)
        return tmp_path / name / "checkpoints" / "last.ckpt"

    torch.manual_seed(5)
    whole = stored(start("whole", conv(weights=weights)))
    torch.manual_seed(5)
    half = start("half", conv(weights=weights), callbacks=[Stop()])
    half.rename(tmp_path / "half.ckpt")
    again = build(stored(tmp_path / "half.ckpt")["vfm"]["model"], base=ClassificationTask)
    rest = stored(start("rest", again))
    require_equal(whole["state_dict"], rest["state_dict"])
    assert whole["global_step"] == rest["global_step"] == 9


@pytest.mark.parametrize(
    ("num_batches", "min_steps", "epochs", "every"),
    [(10, 400, 40, 2), (4, 400, 100, 5), (3, 91, 31, 1)],
)
def test_the_last_epoch_is_validated(
    tmp_path: Path, num_batches: int, min_steps: int, epochs: int, every: int
) -> None:
    run = trainer(tmp_path, max_epochs=2)
    extend_training(run, num_batches, min_steps)
    assert (run.max_epochs, run.check_val_every_n_epoch) == (epochs, every)
    assert epochs % every == 0


def test_validations_of_the_user_stay(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=2, check_val_every_n_epoch=7)
    extend_training(run, 10, 400)
    assert (run.max_epochs, run.check_val_every_n_epoch) == (42, 7)


@pytest.mark.parametrize("changes", [{"max_steps": 5}, {"max_epochs": -1}, {"fast_dev_run": True}])
def test_trainings_without_epochs_are_not_extended(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = trainer(tmp_path, **changes)
    epochs = run.max_epochs
    extend_training(run, 10, 400)
    assert run.max_epochs == epochs


def test_a_floor_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_steps is -1\. Give 0 or more, or auto"):
        vit(min_steps=-1)


@pytest.mark.parametrize(
    ("accelerator", "is_there", "is_native", "precision"),
    [
        ("auto", True, True, "bf16-mixed"),
        ("gpu", True, False, "32-true"),
        ("cpu", True, True, "32-true"),
        ("auto", False, False, "32-true"),
    ],
)
def test_precision_follows_the_hardware(
    accelerator: str,
    is_there: bool,
    is_native: bool,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: is_native)
    assert choose_precision(accelerator) == precision
