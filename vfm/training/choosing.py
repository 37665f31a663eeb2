"""Checkpoint choice: the best by a metric, equal ones by the loss; where few samples judge, the last of good loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vfm.data import ImageData
from vfm.models.tensors import copy_whole, read_plain

LOSS = "val/loss"
"""What breaks ties, and chooses where few samples judge."""
FEW = 50
"""Images, objects or videos to judge by below which a metric that counts them takes too few values to choose by."""

_Z = 1.96


def compute_half_width(count: int) -> float:
    """Return the largest half-width of the 95 % interval of a fraction of `count` samples (Wilson, 1927)."""
    return _Z * math.sqrt(0.25 / count + (_Z / (2 * count)) ** 2) / (1 + _Z**2 / count)


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt` by a metric, of equal ones that of the lowest loss; with few samples to judge by, by the loss.

    Losses of few samples differ by chance, and what trained longer is mostly better: there the last checkpoint is the
    best unless its loss is above the lowest by more than a standard error, which for losses spread as widely as they
    are large is the lowest over the root of the count.

    Its state in a checkpoint is that of Lightning's ModelCheckpoint and the loss: checkpoints without it can be gone on
    from, and a resumed training chooses as one that was not cut.
    """

    def __init__(self, monitor: str, mode: str, **options: Any) -> None:
        """Set the metric, whether it should be `max` or `min`, and other options of ModelCheckpoint."""
        super().__init__(monitor=monitor, mode=mode, filename="best", **options)
        self.least_loss: Tensor | None = None
        self._tolerance = 0.0

    @property
    def state_key(self) -> str:
        """The key that Lightning gives a ModelCheckpoint."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose by the loss where few samples judge, and say what that choice is worth."""
        super().setup(trainer, pl_module, stage)
        count, metric = _count_judged(trainer, pl_module), self.monitor
        if metric == LOSS or not 0 < count < FEW:
            return
        self.monitor, self.mode, self._tolerance = LOSS, "min", count**-0.5
        if stage == "fit" and trainer.datamodule.fold is None:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"{count} validation samples are too few to choose a checkpoint by {metric}: the 95 % interval of a "
                f"fraction of so few is up to ± {compute_half_width(count):.2f} wide. The last checkpoint is taken "
                f"whose {LOSS} is at most {self._tolerance:.0%} above the lowest. --data.folds 5 judges by all images."
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

        Where few samples judge, it is if its loss is not above the lowest by more than a standard error.
        """
        loss = trainer.callback_metrics.get(LOSS)
        if self._tolerance and current is not None and self.least_loss is not None:
            least = self.least_loss.to(current.device)
            self.least_loss = torch.fmin(least, current)
            within = bool(current <= least * (1 + self._tolerance))
            return trainer.strategy.reduce_boolean_decision(within)
        is_best = super().check_monitor_top_k(trainer, current)
        if not is_best and current is not None and self.best_model_score is not None:
            is_tie = _wins_tie(current, self.best_model_score, loss, self.least_loss)
            is_best = trainer.strategy.reduce_boolean_decision(is_tie)
        if is_best:
            self.least_loss = loss
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """Return the state of ModelCheckpoint, and the loss of the best."""
        return super().state_dict() | {"least_loss": self.least_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; one of an earlier version has no loss."""
        super().load_state_dict(state_dict)
        self.least_loss = state_dict.get("least_loss")


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
