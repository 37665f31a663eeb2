"""Checkpoint saving: files that are whole or not there, also of a job that is stopped by SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import ReduceOp

from vfm.training.choosing import BestCheckpoint
from vfm.training.ranks import reduce_ranks

LAST = "last"
"""Name of the checkpoint to resume from."""

_SAVE_EVERY = timedelta(minutes=15)
_ASKED_AGAIN = (
    b"\nStopping after this step, with a checkpoint. Ctrl-C again stops at once, without one.\n"
)
_SETTINGS = ("state_key", "dirpath", "filename", "save_weights_only", "save_last", "save_top_k")
"""Attributes of a ModelCheckpoint by which a user's differs from Lightning's default."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the file's place and moves it there: a reader meets the old file or the new one, never a part.

    Lightning's own writes to the system's temporary folder; from another disk, moving it is copying it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Save; anything but a local path is left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())  # the name must not reach the disk before the content
        os.replace(partial, target)  # noqa: PTH105 - atomic on every system


def write_whole(trainer: Trainer) -> None:
    """Put `WholeCheckpointIO` in the place of Lightning's default; a plugin of the user's own stays."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


def is_default_checkpoint(callback: Callback) -> bool:
    """Return whether this is the ModelCheckpoint that Lightning adds by itself, rather than one of the user's."""
    default = ModelCheckpoint()
    return type(callback) is ModelCheckpoint and all(
        getattr(callback, name) == getattr(default, name) for name in _SETTINGS
    )


def build_checkpoints(monitor: str | None, mode: str) -> list[ModelCheckpoint]:
    """Return what keeps `best.ckpt` by a metric, if any, and `last.ckpt`, of every epoch and quarter of an hour."""
    common: dict[str, Any] = {"auto_insert_metric_name": False, "enable_version_counter": False}
    # Not Lightning's save_last: it leaves an old file where the metric does not rise.
    last = [
        ModelCheckpoint(filename=LAST, train_time_interval=_SAVE_EVERY, **common),
        ModelCheckpoint(filename=LAST, **common),
    ]
    if monitor is None:
        return last
    return [BestCheckpoint(monitor, mode, **common), *last]


def find_last_checkpoint(trainer: Trainer) -> Path | None:
    """Return the path of `last.ckpt` of a run; None where it keeps no checkpoints."""
    callbacks = trainer.checkpoint_callbacks
    folders = [c.dirpath for c in callbacks if isinstance(c, ModelCheckpoint)]
    folder = next((Path(f) for f in folders if f), None)
    return folder / f"{LAST}.ckpt" if folder and not trainer.fast_dev_run else None  # type: ignore[attr-defined]


class Preemption(Callback):
    """On SIGTERM or Ctrl-C, saves `last.ckpt` after the current step and ends the job with exit status 143 or 130.

    After the last step of an epoch it saves, and ends the job when validation is through: a run that is resumed does
    not validate again. All ranks agree on the step. Lightning's handler talks to other ranks from inside the signal,
    which can meet them in another conversation and hang. It comes after the callbacks whose state it saves.
    """

    def __init__(self) -> None:
        self._asked = 0  # number of the signal
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen in the place of Lightning and Python; only a main thread can."""
        self._asked = 0
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as of a job in the background
                self._previous[number] = signal.signal(number, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            if self._asked:
                signal.default_int_handler(signum, frame)
            os.write(2, _ASKED_AGAIN)  # print may be in the middle of a line
        self._asked = signum

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here if asked during the validation before."""
        if self._is_asked(trainer):
            self._stop(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save here if asked, unless gradients are still being collected; stop, unless validation follows."""
        if self._is_asked(trainer) and not trainer.fit_loop._should_accumulate():
            self._save(trainer)
            if not trainer.is_last_batch:
                self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state after validation, if asked."""
        if self._is_asked(trainer):
            self._save(trainer)

    def give_back(self, *args: Any, **kwargs: Any) -> None:
        """Give the signals back to who had them before."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    teardown = on_exception = give_back

    def _is_asked(self, trainer: Trainer) -> bool:
        self._asked = int(reduce_ranks(self._asked, trainer.strategy.root_device, ReduceOp.MAX))
        return self._asked > 0

    def _save(self, trainer: Trainer) -> None:
        if path := find_last_checkpoint(trainer):
            trainer.save_checkpoint(path)

    def _stop(self, trainer: Trainer) -> None:
        path, name = find_last_checkpoint(trainer), signal.Signals(self._asked).name
        if path is None:
            rank_zero_info(f"Stopped by {name}; this run keeps no checkpoints.")
        else:
            rank_zero_info(f"Stopped by {name} and saved; go on with --ckpt_path {path}")
        raise SIGTERMException(128 + self._asked)
