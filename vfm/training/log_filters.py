"""Log filters: leave out what Lightning says that a user can do nothing with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_INNER = (
    "💡 Tip",
    "The following callbacks returned in",
    "TPU available",
    "Loading `train_dataloader`",
    "`weights_only` was not set",
)
_WARNINGS = (
    # sys.argv and the words do differ, by what a checkpoint adds.
    "LightningCLI's args parameter",
    "The dirpath has changed",
    # What is logged of a validation is the same on every rank already.
    "It is recommended to use `self.log",
    # ShardData's workers have parts of their own.
    r"Your `IterableDataset` has `__len__` defined",
    # A head that is solved has no optimizer, and may have no val split.
    r"`LightningModule.configure_optimizers` returned `None`",
    "You defined a `validation_step` but have no `val_dataloader`",
    # A frozen backbone is meant to be.
    r"Found \d+ module\(s\) in eval mode",
    # Epochs of few images are short.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # Averaging and early stopping are for training alone.
    "Be aware that when using `ckpt_path`, callbacks",
    # Weights that are sharded are averaged by no one: that is refused where it is asked for.
    "You're using the WeightAveraging callback with a model that overrides the configure_model",
    r".*isinstance\(treespec, LeafSpec",
    # What vfm embed predicts is in files.
    "predict returned None",
)


def filter_logs() -> None:
    """Filter the advertisements and inner workings from Lightning's log and warnings."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(_INNER)
    )
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def silence_trainers() -> Iterator[None]:
    """Leave Lightning's own messages below warnings out, such as what each of many trainings runs on."""
    loggers = [
        logging.getLogger(name)
        for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
