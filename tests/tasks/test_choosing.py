"""Which checkpoint a training keeps as the best, and when it stops for lack of a better one."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from tests.tasks.tiny import VIT, fit, shapes, stored
from vfm.data import SyntheticScenes
from vfm.deepfake.data.synthetic import SyntheticDeepfakes
from vfm.deepfake.task import DeepfakeTask
from vfm.models.heads import MLPHead
from vfm.tasks import ClassificationTask, DetectionTask

ENOUGH = {"num_images": 240}
"""60 of them to validate."""


class Scripted(ClassificationTask):
    """Accuracy and loss of each validation are decided before."""

    script: list[tuple[float, float]]

    def compute_metrics(self, split: str, predictions: Any) -> dict[str, float]:
        accuracy, loss = self.script[self.current_epoch]
        return {"loss": loss, "accuracy": accuracy}


def make(script: list[tuple[float, float]], **options: Any) -> Scripted:
    head = MLPHead(hidden=8)  # a linear one would be solved
    tiny = {"head": head, "pretrained": False, "image_size": 32, "backbone_args": VIT}
    task = Scripted("vit_tiny_patch16_224", adapt="linear", **(tiny | options))
    task.script = script
    return task


def run(
    root: Path,
    script: list[tuple[float, float]],
    images: Any = ENOUGH,
    patience: int | None = None,
    **changes: Any,
) -> Any:
    """Train for as many epochs as are scripted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = make(script, patience=patience)
        return fit(root, task, shapes(**images), max_epochs=len(script), **changes)


def find_best_epoch(root: Path) -> int:
    return int(stored(root / "checkpoints" / "best.ckpt")["epoch"])


@pytest.mark.parametrize(
    ("script", "best"),
    [
        ([(0.5, 0.9), (0.8, 0.5), (0.8, 0.4), (0.8, 0.6)], 2),  # a tie that is won, and one lost
        ([(0.8, 0.9), (0.7, 0.1), (0.8, 0.9)], 0),  # the metric goes before the loss
        ([(0.8, 0.5), (0.9, 0.7), (0.9, 0.6)], 2),  # the loss of the best is remembered
    ],
)
def test_equal_metrics_are_told_apart_by_the_loss(
    tmp_path: Path, script: list[tuple[float, float]], best: int
) -> None:
    run(tmp_path, script)
    assert find_best_epoch(tmp_path) == best


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ([0.9, 0.75, 0.7], 1),  # the interval of 0.9 of 24 ends at 0.724
        ([0.5, 0.9, 0.73, 0.75, 0.6], 3),  # the highest is remembered, not what was kept
        ([0.5, 0.9, math.nan], 2),  # as an AUC of one class is
    ],
)
def test_of_few_images_the_last_that_chance_explains_is_taken_and_said(
    tmp_path: Path, accuracies: list[float], best: int
) -> None:
    task = make([(accuracy, 0.1 * (1 + epoch)) for epoch, accuracy in enumerate(accuracies)])
    message = (
        "24 validation samples are too few to choose a checkpoint by val/accuracy: the 95 % interval of a fraction of "
        r"so few is up to ± 0\.19 wide. The last checkpoint is taken whose val/accuracy is within that of the highest. "
        "--data.folds 5 judges by all images."
    )
    with pytest.warns(UserWarning, match=message):
        fit(tmp_path, task, max_epochs=len(accuracies))
    assert find_best_epoch(tmp_path) == best


class CutAfter(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise InterruptedError


def test_a_resumed_training_remembers_the_highest_of_few(tmp_path: Path) -> None:
    script, few = [(0.9, 0.5), (0.75, 0.5), (0.7, 0.5), (0.7, 0.5)], {"num_images": 96}
    with pytest.raises(InterruptedError):
        run(tmp_path, script, few, callbacks=[CutAfter(2)])
    run(tmp_path, script, few, ckpt_path=str(tmp_path / "checkpoints/last.ckpt"))
    assert find_best_epoch(tmp_path) == 1


@pytest.mark.parametrize("of_before", [False, True])
def test_a_resumed_training_chooses_as_one_that_was_not_cut(
    tmp_path: Path, of_before: bool
) -> None:
    script = [(0.5, 0.9), (0.8, 0.5), (0.8, 0.6), (0.8, 0.3)]
    with pytest.raises(InterruptedError):
        run(tmp_path, script, callbacks=[CutAfter(2)], patience=5)
    last = tmp_path / "checkpoints" / "last.ckpt"
    if of_before:
        # A version that did not remember the loss.
        content = stored(last)
        keys = [key for key, state in content["callbacks"].items() if state.pop("least_loss", 0)]
        assert [key.partition("{")[0] for key in keys] == ["EarlyStopping", "ModelCheckpoint"]
        torch.save(content, last)
    run_on = run(tmp_path, script[:3], ckpt_path=str(last), patience=5)
    assert find_best_epoch(tmp_path) == 1
    if not of_before:
        run_on = run(tmp_path, script, ckpt_path=str(last), patience=5)
        assert find_best_epoch(tmp_path) == 3
    states = [
        c.state_key for c in run_on.callbacks if isinstance(c, EarlyStopping | ModelCheckpoint)
    ]
    assert len(set(states)) == len(states)


@pytest.mark.parametrize(("is_there", "best"), [(True, 1), (False, 3)])
def test_the_best_goes_along_into_another_folder(
    tmp_path: Path, is_there: bool, best: int, recwarn: pytest.WarningsRecorder
) -> None:
    script = [(0.5, 0.9), (0.81, 0.5), (0.7, 0.6), (0.78, 0.3), (0.9, 0.2)]
    with pytest.raises(InterruptedError):
        run(tmp_path / "0", script, callbacks=[CutAfter(3)])
    (tmp_path / "0").rename(tmp_path / "moved")
    old, last = (tmp_path / "moved/checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    content = old.read_bytes()
    if not is_there:
        old.unlink()
    made = fit(
        tmp_path / "1", make(script[:4]), shapes(**ENOUGH), max_epochs=4, ckpt_path=str(last)
    )
    lost = [w for w in recwarn if "The best checkpoint so far" in str(w.message)]
    assert len(lost) == (not is_there)
    callback: Any = made.checkpoint_callback
    assert callback.best_model_path == str(tmp_path / "1/checkpoints/best.ckpt")
    assert float(callback.best_model_score) == pytest.approx(script[best][0])
    assert find_best_epoch(tmp_path / "1") == best
    run(tmp_path / "2", script, ckpt_path=str(tmp_path / "1/checkpoints/last.ckpt"))
    assert find_best_epoch(tmp_path / "2") == 4
    assert find_best_epoch(tmp_path / "1") == best
    assert not is_there or old.read_bytes() == content


def test_the_patience_of_the_call_counts(tmp_path: Path) -> None:
    script = [(0.8, 0.5), *[(0.7, 0.6)] * 6]
    with pytest.raises(InterruptedError):
        run(tmp_path, script, callbacks=[CutAfter(2)], patience=9)
    last = str(tmp_path / "checkpoints/last.ckpt")
    assert run(tmp_path, script, ckpt_path=last, patience=3).current_epoch == 4


def test_patience_waits_for_validations_that_are_not_of_every_epoch(tmp_path: Path) -> None:
    task = make([(0.8, 0.5)] * 80, patience=2, min_steps=80)
    images = {"num_images": 240, "batch_size": 120}
    assert fit(tmp_path, task, shapes(**images), max_epochs=2).current_epoch == 12


@pytest.mark.parametrize(
    ("script", "images", "epochs"),
    [
        ([(0.8, 0.5), (0.8, 0.4), (0.8, 0.3), (0.8, 0.3), (0.8, 0.4), (0.9, 0.1)], ENOUGH, 5),
        ([(0.8, 0.5), (0.9, 0.6), (0.95, 0.7), (1.0, 0.1)], {"num_images": 96}, 3),
    ],
)
def test_patience_counts_what_is_not_the_best(
    tmp_path: Path, script: list[tuple[float, float]], images: Any, epochs: int
) -> None:
    assert run(tmp_path, script, images, patience=2).current_epoch == epochs


def test_each_task_counts_what_its_metric_counts() -> None:
    scenes = SyntheticScenes(num_images=40, num_classes=1)
    scenes.setup()
    boxes = sum(len(record.label) for record in scenes.records["val"])
    assert DetectionTask.count_judged(None, scenes) == boxes > len(scenes.records["val"])  # type: ignore[arg-type]
    faces = SyntheticDeepfakes(num_frames=3, image_size=32)
    faces.setup()
    assert len(faces.records["val"]) == 36
    assert DeepfakeTask.count_judged(None, faces) == 12  # type: ignore[arg-type]
