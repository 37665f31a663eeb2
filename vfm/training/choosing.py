"""Checkpoint choice: the best by a metric, equal ones by the loss; where few samples judge, the last as good as it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vfm.data import ImageData
from vfm.metrics.intervals import compute_wilson
from vfm.models.tensors import copy_whole, read_plain

LOSS = "val/loss"
"""What breaks ties, and ends a training with patience where few samples judge."""
FEW = 50
"""Images, objects or videos to judge by below which a metric that counts them takes too few values to choose by."""


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt` by a metric, of equal ones that of the lowest loss; with few to judge by, the last.

    The highest of many metrics of few samples is so by luck, and what trained longer, at a falling rate, is mostly
    better. So there the last checkpoint is taken whose metric lies in the 95 % interval of the highest (Wilson, 1927).

    Its state in a checkpoint is that of Lightning's ModelCheckpoint, the loss and the highest metric: checkpoints
    without these can be gone on from, and a resumed training chooses as one that was not cut.
    """

    def __init__(self, monitor: str, mode: str, **options: Any) -> None:
        """Set the metric, whether it should be `max` or `min`, and other options of ModelCheckpoint."""
        super().__init__(monitor=monitor, mode=mode, filename="best", **options)
        self.least_loss: Tensor | None = None
        self.peak: Tensor | None = None
        self._num_judged = 0

    @property
    def state_key(self) -> str:
        """The key that Lightning gives a ModelCheckpoint."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the last where few samples judge, and say what a choice by these would be worth."""
        super().setup(trainer, pl_module, stage)
        count = _count_judged(trainer, pl_module)
        if self.mode != "max" or not 0 < count < FEW:
            return
        self._num_judged = count
        if stage == "fit" and trainer.datamodule.fold is None:  # type: ignore[attr-defined]
            low, high = compute_wilson(0.5, count)
            rank_zero_warn(
                f"{count} validation samples are too few to choose a checkpoint by {self.monitor}: the 95 % interval "
                f"of a fraction of so few is up to ± {(high - low) / 2:.2f} wide. The last checkpoint is taken whose "
                f"{self.monitor} is within that of the highest. --data.folds 5 judges by all images."
            )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Bring the best checkpoint along where training goes on in another folder; Lightning forgets it there."""
        state = checkpoint["callbacks"].get(self.state_key)
        is_new = state is not None and state["dirpath"] != self.dirpath
        if not is_new or trainer.state.fn != TrainerFn.FITTING or not state["best_model_path"]:
            return
        path = str(Path(self.dirpath or ".") / Path(state["best_model_path"]).name)
        if trainer.strategy.broadcast(trainer.is_global_zero and self._bring(state, path, trainer)):
            best = {"best_k_models": {path: state["best_model_score"]}, "dirpath": self.dirpath}
            state |= best | {"best_model_path": path, "kth_best_model_path": path}
        else:
            del checkpoint["callbacks"][self.state_key]
            rank_zero_warn(
                f"The best checkpoint so far, {state['best_model_path']}, is gone or of a later epoch than the one to "
                "go on from: the best is chosen from here on."
            )

    def _bring(self, state: dict[str, Any], path: str, trainer: Trainer) -> bool:
        """Put the best checkpoint that a state tells of into another folder; return whether it is still there."""
        beside = Path(str(trainer.ckpt_path)).with_name(
            Path(path).name
        )  # where the folder was moved
        for file in (Path(state["best_model_path"]), beside):
            if not file.is_file():
                continue
            stored = read_plain(file, lazy=True).get("callbacks", {}).get(self.state_key, {})
            score, expected = stored.get("best_model_score"), state["best_model_score"]
            if score is not None and float(score) == float(expected):
                copy_whole(file, Path(path))
                return True
        return False

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether a validation is the best so far: by the metric, or as good with a lower loss.

        Where few samples judge, it is if chance can explain how far it is below the highest.
        """
        loss = trainer.callback_metrics.get(LOSS)
        if self._num_judged and current is not None:
            self.peak = current if self.peak is None else self.peak.to(current.device).fmax(current)
            lowest, _ = compute_wilson(float(self.peak), self._num_judged)
            # A metric that is not a number, such as an AUC of one class, tells no checkpoint from another.
            return trainer.strategy.reduce_boolean_decision(not float(current) < lowest)
        is_best = super().check_monitor_top_k(trainer, current)
        if not is_best and current is not None and self.best_model_score is not None:
            is_tie = _wins_tie(current, self.best_model_score, loss, self.least_loss)
            is_best = trainer.strategy.reduce_boolean_decision(is_tie)
        if is_best:
            self.least_loss = loss
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """Return the state of ModelCheckpoint, the loss of the best, and the highest metric of few samples."""
        return super().state_dict() | {"least_loss": self.least_loss, "peak": self.peak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; one of an earlier version has neither loss nor highest metric."""
        super().load_state_dict(state_dict)
        self.least_loss, self.peak = state_dict.get("least_loss"), state_dict.get("peak")


class Patience(EarlyStopping):
    """Stops after some validations of which none was the best so far, as `BestCheckpoint` counts it."""

    def __init__(self, monitor: str, mode: str, patience: int) -> None:
        """Set the metric, whether it should be `max` or `min`, and the number of validations."""
        # After validations, which are not of every epoch where `min_steps` makes the epochs many.
        super().__init__(monitor, patience=patience, mode=mode, check_on_train_epoch_end=False)
        self.least_loss: Tensor | None = None
        self._trainer: Trainer | None = None

    @property
    def state_key(self) -> str:
        """The key that Lightning gives an EarlyStopping."""
        return super().state_key.replace(type(self).__qualname__, EarlyStopping.__qualname__, 1)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the loss where few samples judge."""
        super().setup(trainer, pl_module, stage)
        self._trainer = trainer
        if 0 < _count_judged(trainer, pl_module) < FEW:
            self.monitor, self.mode, self.best_score = LOSS, "min", torch.tensor(torch.inf)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        assert self._trainer is not None  # set before the first validation
        loss = self._trainer.callback_metrics.get(LOSS)
        if _wins_tie(current, self.best_score, loss, self.least_loss):
            self.wait_count, self.least_loss = 0, loss
            return False, None
        answer = super()._evaluate_stopping_criteria(current)
        if self.wait_count == 0:
            self.least_loss = loss
        return answer

    def state_dict(self) -> dict[str, Any]:
        """Return the state of EarlyStopping, and the loss of the best."""
        return super().state_dict() | {"least_loss": self.least_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, but for the patience; one of an earlier version has no loss."""
        super().load_state_dict(state_dict | {"patience": self.patience})
        self.least_loss = state_dict.get("least_loss")


def _count_judged(trainer: Trainer, task: Any) -> int:
    data = trainer.datamodule  # type: ignore[attr-defined]
    # The task's own setup, which comes later, refuses other data.
    return int(task.count_judged(data)) if isinstance(data, ImageData) else 0


def _wins_tie(current: Tensor, best: Tensor, loss: Tensor | None, least: Tensor | None) -> bool:
    """Return whether a metric is as good as the best, and its loss lower than the loss then."""
    if loss is None or least is None:
        return False
    return bool(current == best.to(current.device)) and bool(loss < least.to(loss.device))
