"""Number of optimizer steps of a training: counted, and raised to a floor (min_steps) by more epochs."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from vfm_runtime.errors import OptionError

_NUM_VALIDATIONS = 20
"""Least number of validations of a training that was extended."""


def count_steps(trainer: Trainer, num_batches: int) -> int:
    """Return the optimizer steps of a whole training.

    Not Lightning's own estimate: it keeps the loader that it counts, and so never tells it where to resume.

    Raises:
        OptionError: The training has no end.
    """
    ends = []
    if trainer.max_epochs is not None and trainer.max_epochs != -1:
        ends.append(trainer.max_epochs * count_epoch_steps(trainer, num_batches))
    if trainer.max_steps != -1:
        ends.append(trainer.max_steps)
    if not ends:
        raise OptionError(
            "The learning rate falls towards the end of training, and max_epochs -1 sets none. "
            "Give --trainer.max_epochs or --trainer.max_steps."
        )
    return min(ends)


def count_epoch_steps(trainer: Trainer, num_batches: int) -> int:
    """Return the optimizer steps of an epoch whose loader has so many batches on each process."""
    limited = limit_batches(num_batches, trainer.limit_train_batches)
    return math.ceil(limited / trainer.accumulate_grad_batches)


def limit_batches(num_batches: int, limit: float | None) -> int:
    """Return how many batches a limit of the Trainer leaves: an int is their number, a float their fraction."""
    if limit is None:
        return num_batches
    return min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)


def extend_training(trainer: Trainer, num_batches: int, min_steps: int) -> None:
    """Set more epochs where there would be fewer steps than a floor; validations are about as many as before.

    A training that is counted in steps, has no end or is a trial run stays as it is.

    Args:
        trainer: Trainer whose loops have not started.
        num_batches: Number of batches of an epoch, on each process.
        min_steps: Least number of optimizer steps.
    """
    if trainer.max_steps != -1 or not trainer.max_epochs or trainer.max_epochs < 0:
        return
    steps = max(count_epoch_steps(trainer, num_batches), 1)
    needed = math.ceil(min_steps / steps)
    if trainer.fast_dev_run or needed <= trainer.max_epochs:  # type: ignore[attr-defined]
        return
    if trainer.check_val_every_n_epoch == 1:
        trainer.check_val_every_n_epoch = max(1, needed // _NUM_VALIDATIONS)
    every = trainer.check_val_every_n_epoch or 1
    # The last epoch is validated and saved too.
    trainer.fit_loop.max_epochs = math.ceil(needed / every) * every
    rank_zero_info(
        f"{steps} steps an epoch: training for {trainer.max_epochs} epochs to reach {min_steps} steps "
        f"(--model.min_steps), with a validation every {every}."
    )
