"""Plans a training by minutes: a short trial tells how many epochs fit into the time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from vfm_runtime.errors import OptionError

from vfm.training.num_steps import count_epoch_steps, limit_batches
from vfm.training.optim import Optim

MINUTES_OPTION = "--trainer.minutes"
_WARM, _MEASURED = 3, 10
"""Steps of the trial: those that warm up, and those that are timed."""
_VALIDATED = 3
"""Batches that the trial validates at most."""
TRIAL: Mapping[str, Any] = MappingProxyType(
    {
        "max_epochs": -1,
        "max_steps": _WARM + _MEASURED,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
)
"""Options of a trial's Trainer: some steps, and nothing is saved."""
_MOST_VALIDATING = 0.15
"""Fraction of the time that validations may take."""
_NUM_VALIDATIONS = 20
_LEAST_BATCH = 4
"""Images of a batch that is not made smaller, however few steps there are."""
_LEAST_STEPS = 10
"""Steps without which a training makes no sense."""
_SPARE = 0.05
"""Fraction of the time kept for what is slower than in the trial."""


@dataclass
class TimedTrial(Callback):
    """Times the first steps and validations of a training, and ends it."""

    start: float = field(default_factory=time.perf_counter)
    startup: float = 0.0
    """Seconds until the first step has ended."""
    steps: list[float] = field(default_factory=list)
    """Seconds of each step after the warm ones, within an epoch."""
    validated: list[float] = field(default_factory=list)
    """Seconds of each batch that was validated."""
    changes: list[float] = field(default_factory=list)
    """Seconds from the last step of an epoch to the first one of the next, without validation."""
    epoch_steps: int = 0
    epoch_validated: int = 0
    """Steps of an epoch, and batches of a validation."""
    num_images: int = 0
    """Training images."""
    accumulated: int = 1
    """Batches of a step."""
    enough_steps: int = 0
    """Steps below which batches are made smaller."""
    batch_size: int | None = None
    """Images of a batch where the user gave no number; None where there is nothing to choose."""
    optim: Optim = field(default_factory=Optim)
    """Options of the learning rate, without `auto`."""
    _number: int = 0
    _last: float = 0.0
    _apart: float = 0.0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note the time since the step before."""
        now, first = time.perf_counter(), args[-1] == 0
        if self._number == 0:
            self.startup = now - self.start
        elif first:
            self.changes.append(now - self._last - self._apart)
        elif self._number >= _WARM:
            self.steps.append(now - self._last)
        self._number += 1
        self._last, self._apart = now, 0.0
        trainer.should_stop = self._number >= _WARM + _MEASURED

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to time a validation."""
        self._apart -= time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note its time."""
        self._apart += time.perf_counter()
        batches = min(_VALIDATED, self.epoch_validated)
        if batches and not trainer.sanity_checking:
            self.validated.append(self._apart / batches)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches, and let the trial validate few of them.

        Raises:
            OptionError: Several processes would each take a time of their own.
        """
        if trainer.world_size > 1:
            raise OptionError(
                f"{MINUTES_OPTION} times one process, and there are {trainer.world_size}. Give --trainer.devices 1, or "
                "--trainer.max_epochs in its place."
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.epoch_steps = max(1, count_epoch_steps(trainer, len(data.train_dataloader())))
        if data.records.get("val") and trainer.limit_val_batches:
            number = len(data.val_dataloader())
            self.epoch_validated = limit_batches(number, trainer.limit_val_batches)
            trainer.limit_val_batches = min(_VALIDATED, self.epoch_validated)
        self.num_images = len(data.records["train"])
        self.accumulated = trainer.accumulate_grad_batches
        task: Any = pl_module
        self.enough_steps = task.enough_steps
        # A mean and variance of a handful of images would spoil a net that normalizes by those of its batch.
        learns_norms = task.backbone.has_batch_norm and not task.backbone.keeps_norm_stats
        if data.chooses_batch_size and not learns_norms:
            self.batch_size = data.batch_size
        self.optim = task.optim


@dataclass(frozen=True)
class Plan:
    """How long to train, so that it ends in time."""

    epochs: int
    validate_every: int
    """Epochs from one validation to the next."""
    seconds: float
    """Time of the training at most, without what went before it."""
    steps: int
    """Optimizer steps in all."""
    batch_size: int | None = None
    """Batch size that was chosen; None where the data's own stays."""
    learning_rate: float | None = None
    """Learning rate that goes with it."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """How much of an epoch and of a validation there is time for, as options of the Trainer."""
    notes: tuple[str, ...] = ()
    """Sentences on what was chosen, and what could not be done."""

    def list_trainer_options(self) -> dict[str, Any]:
        """Return the options of the Trainer; the task's `min_steps` is to be 0."""
        minutes, seconds = divmod(math.ceil(self.seconds), 60)
        return {
            **self.limits,
            "max_steps": -1,
            "max_epochs": self.epochs,
            "check_val_every_n_epoch": self.validate_every,
            "max_time": f"00:{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}",
        }


def plan_training(trial: TimedTrial, seconds: float) -> Plan:
    """Return the epochs, and how often to validate, that fit into the time; a part of one epoch where none does.

    Where the user gave no batch size, batches are halved until there are enough steps, and the learning rate falls with
    the root of their size (Malladi et al., 2022).

    Args:
        trial: Trial that has ended, with the times that it measured.
        seconds: Time that is left, with a start like the trial's.

    Raises:
        OptionError: Not even a few steps fit.
    """
    step = statistics.median(trial.steps or trial.changes)
    change = max(0.0, statistics.median(trial.changes) - step) if trial.changes else 0.0
    validated = statistics.median(trial.validated or [step])
    validation = trial.epoch_validated * validated
    left = seconds - trial.startup
    usable = (1 - _SPARE) * left
    size, epoch_steps = trial.batch_size or 0, trial.epoch_steps
    while size >= 2 * _LEAST_BATCH and usable < trial.enough_steps * step:
        size, step, epoch_steps = size // 2, step / 2, 2 * epoch_steps
    chosen: dict[str, Any] = {}
    notes: list[str] = []
    if trial.batch_size and size < trial.batch_size:
        rate = (trial.optim.lr or 0.0) * math.sqrt(size / trial.batch_size)
        chosen = {"batch_size": size, "learning_rate": float(f"{rate:.3g}")}
        notes.append(
            f"Batches of {size} in place of {trial.batch_size}, for more steps, at a learning rate of {rate:.2g} "
            "(--data.batch_size, --model.optim.lr)."
        )
    # The time of an epoch is that of its images, whatever their batches.
    epoch = epoch_steps * step + change
    # At least one validation, at the end.
    epochs = int((usable - validation) / epoch)
    if epochs < 1:
        shrink = max(size, 1) / (trial.batch_size or 1)
        validates = min(trial.epoch_validated, max(1, int(_MOST_VALIDATING * usable / validated)))
        steps = min(int((usable - validates * validated) / step), epoch_steps)
        more = ((epoch + validation) / (1 - _SPARE) - left) / 60 + 0.05
        if steps < _LEAST_STEPS:
            raise OptionError(
                f"{MINUTES_OPTION} does not suffice for {_LEAST_STEPS} of the {epoch_steps} steps of an epoch, "
                f"{step:.2f} s each, and a validation of {validation:.0f} s. Give {more:.1f} more minutes for all of "
                "it, a smaller --model.image_size, or a smaller backbone."
            )
        limits = {"limit_train_batches": steps * trial.accumulated}
        if validates < trial.epoch_validated:
            limits["limit_val_batches"] = max(1, int(validates / shrink))
        part = validates / max(trial.epoch_validated, 1)
        validated_part = f", and a validation on {part:.0%} of its images" if validates else ""
        notes.append(
            f"There is no time for a whole epoch: {steps} of its {epoch_steps} steps, which see "
            f"{steps / epoch_steps:.0%} of the {trial.num_images} training images once{validated_part}. Give "
            f"{more:.1f} more minutes for all."
        )
        return Plan(1, 1, max(left, 1.0), steps, limits=limits, notes=tuple(notes), **chosen)
    most = max(1, int(_MOST_VALIDATING * usable / max(validation, 1e-6)))
    number = min(_NUM_VALIDATIONS, most, epochs)
    epochs = max(number, int((usable - number * validation) / epoch))
    every = max(1, round(epochs / number))
    epochs = epochs // every * every
    steps = epochs * epoch_steps
    if steps < trial.enough_steps:
        times = trial.enough_steps / steps
        notes.append(
            f"{steps} steps are few: {trial.enough_steps} would take {times:.1f} times as long."
        )
    return Plan(epochs, every, max(left, 1.0), steps, notes=tuple(notes), **chosen)
