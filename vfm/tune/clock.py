"""Time of `vfm tune`: the seconds that are left, a callback that stops what would overrun, and a stop-watch."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from vfm_runtime.errors import VfmError

_FEWEST_STEPS = 10
"""Steps after which the time of a training is foreseen; the first holds the start of the loader."""
_TOLERANCE = 1.1


class OutOfTimeError(VfmError, ValueError):
    """The work would take longer than it may."""

    def __init__(self, message: str, seconds: float) -> None:
        """Set the message, and the seconds that all of it would take."""
        super().__init__(message)
        self.seconds = seconds


class Clock:
    """Counts the seconds of a budget from the moment it is made."""

    def __init__(self, minutes: float) -> None:
        self._start = time.perf_counter()
        self.total = 60 * minutes

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    @property
    def left(self) -> float:
        """Seconds until the end; below 0 after it."""
        return self.total - self.elapsed


class StopOverrun(Callback):
    """Ends a training with an OutOfTimeError as soon as its steps show that it would end too late.

    Attributes:
        seconds_per_step: Mean time of a step after the first; 0 before two were taken.
    """

    def __init__(self, allowed: float) -> None:
        """Set the seconds that the training may take, from the start of the fit."""
        self._allowed = allowed
        self._start = time.perf_counter()
        self._first = 0.0
        self._num_steps = 0
        self.seconds_per_step = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Foresee the end from the steps so far."""
        now = time.perf_counter()
        self._num_steps += 1
        if self._num_steps == 1:
            self._first = now
            return
        self.seconds_per_step = (now - self._first) / (self._num_steps - 1)
        if self._num_steps < _FEWEST_STEPS:
            return
        expected = now - self._start + (trainer.max_steps - self._num_steps) * self.seconds_per_step
        if expected > _TOLERANCE * self._allowed:
            raise OutOfTimeError(
                f"The training would take {expected:.0f} s, and may take {self._allowed:.0f} s. Give more --minutes, a "
                "smaller --image-size, or a smaller --backbone.",
                expected,
            )


def measure_seconds(work: Callable[[], object], runs: int) -> float:
    """Return the median seconds of some work over several runs, without the first one in six, which warm up."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[math.ceil(runs / 6) :])
