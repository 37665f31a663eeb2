"""Watchdog: a rank that stops making progress ends the whole job, and says where it stood."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from vfm_runtime.errors import OptionError

EXIT_STATUS = 75
"""Of a rank that ends itself: EX_TEMPFAIL, a job that may be tried again."""


class StallWatch(Callback):
    """Ends a distributed job in which a batch takes longer than a set time; every rank writes its stacks to its log.

    A rank that waits for a stalled one makes no progress either, so all of them end. One process alone is not watched:
    a debugger may hold it for as long as it likes.
    """

    def __init__(self, seconds: float = 1800.0, alone: bool = False) -> None:
        """Set the patience.

        Args:
            seconds: Longest time for one batch, and for what lies between two of them: a checkpoint, compiling.
            alone: Watch a single process too.

        Raises:
            ValueError: The time is not above 0.
        """
        if seconds <= 0:
            raise OptionError(f"StallWatch got seconds {seconds}. Give a time above 0.")
        self.seconds = seconds
        self.alone = alone
        self._stop: threading.Event | None = None  # none yet: processes are started by pickling it
        self._last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to watch."""
        if trainer.world_size == 1 and not self.alone:
            return
        self.note_progress()
        self._stop = threading.Event()
        arguments = (self._stop, trainer.global_rank)
        threading.Thread(target=self._watch, args=arguments, daemon=True).start()

    def note_progress(self, *args: Any, **kwargs: Any) -> None:
        """Start the time anew."""
        self._last = time.monotonic()

    on_train_batch_end = on_validation_batch_end = on_train_epoch_end = note_progress

    def stop(self, *args: Any, **kwargs: Any) -> None:
        """Watch no longer."""
        if self._stop is not None:
            self._stop.set()

    teardown = on_exception = stop

    def _watch(self, stop: threading.Event, rank: int) -> None:
        while not stop.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last <= self.seconds:
                continue
            sys.stderr.write(
                f"\nvfm: rank {rank} has made no progress for {self.seconds:g} s and ends the job. Where its threads "
                "stand follows; the rank that waits for nobody is the one that stalled.\n"
                "Longer patience: --trainer.callbacks+ vfm.training.watchdog.StallWatch "
                "--trainer.callbacks.seconds 3600\n"
            )
            sys.stderr.flush()
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            sys.stderr.flush()
            os._exit(EXIT_STATUS)  # the main thread may never come back
