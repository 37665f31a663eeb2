"""Training steps of the real task on this machine: their time, their operations (FLOPs) and their memory."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from timm.layers import config as timm_config, set_fused_attn
from torch.utils.flop_counter import FlopCounterMode
from vfm_runtime.errors import OptionError

from vfm.cost.memory import MemoryTrace, predict_peak
from vfm.data import ImageData
from vfm.tasks import BaseTask
from vfm.training.log_filters import filter_logs
from vfm.training.oom import read_peak_memory, reset_peak_memory

LEAST_IMAGES = 4
PROCESS_BYTES = 12_000_000
"""What a process takes for a training besides tensors: the loop, its threads, pages of the C library."""
WARM = 1
"""Steps that are not timed."""
TIMED = 4
_TRACED = 2
"""Steps whose memory is followed: the optimizer's state is there from the second."""


@dataclass
class StepProbe(Callback):
    """Times the training steps, without the loading of their batches, and ends the training after some.

    A mode, such as a MemoryTrace, is active in each step.
    """

    num_steps: int
    mode: Any = None
    clock: Callable[[], float] = time.perf_counter
    seconds: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Number of images of each step."""
    _start: float = 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Start to time a step."""
        if self.mode is not None:
            self.mode.__enter__()
        self._start = self.clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time of a step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(self.clock() - self._start)
        self.sizes.append(len(batch["image"]))
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
        trainer.should_stop = len(self.seconds) >= self.num_steps


def run_steps(
    task: BaseTask,
    data: ImageData,
    batch_size: int,
    num_steps: int,
    *,
    precision: Any = "32-true",
    mode: Any = None,
    clock: Callable[[], float] = time.perf_counter,
) -> StepProbe:
    """Train for some steps, and leave nothing.

    Args:
        task: Task, which learns a little.
        data: Data whose train split has images for a batch.
        batch_size: Number of images of a step, fewer where there are not so many.
        num_steps: Number of steps after which it ends.
        precision: Precision as Lightning names it.
        mode: Context to be active in each step.
        clock: Seconds since some moment.

    Raises:
        OptionError: The data has too few images.
    """
    count = len(data.records["train"])
    if count < LEAST_IMAGES:
        raise OptionError(
            f"The data has {count} training images, and steps of {LEAST_IMAGES} are measured. Give more images, or a "
            "recipe without data: images are then generated."
        )
    probe = StepProbe(num_steps, mode, clock)
    previous, data.batch_size = data.batch_size, batch_size
    filter_logs()
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                accelerator="cpu" if mode is not None else "auto",
                devices=1,
                precision=precision,
                max_epochs=1000,
                callbacks=[probe],
                limit_val_batches=0,
                num_sanity_val_steps=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            trainer.fit(task, data)
    finally:
        data.batch_size = previous
        log.setLevel(level)
    return probe


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a training step on this machine, measured at two batch sizes; a line between and beyond them."""

    small: tuple[int, list[float]]
    """Batch size, and the seconds of its steps."""
    large: tuple[int, list[float]]

    def predict(self, batch_size: int) -> float:
        """Return the seconds of a step of another batch size."""
        (small, first), (large, second) = self.small, self.large
        low, high = statistics.median(first), statistics.median(second)
        slope = max(0.0, high - low) / (large - small)
        return max(low, 1e-9) + slope * (batch_size - small)


def time_steps(
    build: Callable[[], BaseTask],
    data: ImageData,
    batch_size: int,
    precision: Any = "32-true",
    clock: Callable[[], float] = time.perf_counter,
) -> StepTimes:
    """Measure steps at half of a batch size and at all of it, from 2 and 4 to 16 and 32 images.

    Args:
        build: Function that builds the task.
        data: Data whose train split has images for a batch.
        batch_size: Number of images of a step of the training that is asked about.
        precision: Precision as Lightning names it.
        clock: Seconds since some moment.
    """
    largest = max(4, min(32, batch_size, len(data.records["train"])))
    measured = []
    for size in (largest // 2, largest):
        probe = run_steps(build(), data, size, WARM + TIMED, precision=precision, clock=clock)
        # The last batch of an epoch may be smaller.
        pairs = list(zip(probe.sizes, probe.seconds, strict=True))[WARM:]
        measured.append((size, [seconds for count, seconds in pairs if count == size]))
    return StepTimes(*measured)


def trace_memory(
    build: Callable[[], BaseTask], data: ImageData, precision: Any = "32-true"
) -> Callable[[int], int]:
    """Follow steps of 2 and 4 images on the CPU.

    Returns:
        Function from a batch size to the peak bytes of its tensors beside the built model.
    """
    timelines: list[tuple[int, list[int]]] = []
    for size in (2, 4):
        trace = MemoryTrace()
        run_steps(build(), data, size, _TRACED, precision=precision, mode=trace)
        timelines.append((size, trace.timeline))
    small, large = timelines
    return partial(predict_peak, small, large)


def measure_allocator(
    build: Callable[[], BaseTask],
    data: ImageData,
    batch_size: int,
    predict: Callable[[int], int],
    precision: Any = "32-true",
) -> float:
    """Return how much more a process holds than its tensors take, as a factor, measured at half of a batch size.

    What is freed leaves gaps, and kernels copy what they compute with. It comes after `trace_memory`: a first training
    also loads libraries.

    Args:
        build: Function that builds the task.
        data: Data whose train split has images for a batch.
        batch_size: Number of images of a step that is asked about; half of it is measured, at most 64 images.
        predict: Function that `trace_memory` returned for this task.
        precision: Precision as Lightning names it.
    """
    size = max(2, min(64, batch_size // 2, len(data.records["train"])))
    task = build()
    before = reset_peak_memory()
    run_steps(task, data, size, _TRACED, precision=precision)
    held = read_peak_memory() - before
    return max(1.0, (held - PROCESS_BYTES) / predict(size))


def count_flops(build: Callable[[], BaseTask], data: ImageData) -> float:
    """Return the additions and multiplications of a training step for one image, attention counted."""
    fused = timm_config.use_fused_attn()
    # torch's counter sees no operations inside fused attention on the CPU.
    set_fused_attn(False)
    counter = FlopCounterMode(display=False)
    totals: list[int] = []

    class Counted(AbstractContextManager[None]):
        def __enter__(self) -> None:
            counter.__enter__()  # type: ignore[no-untyped-call]

        def __exit__(self, *args: object) -> None:
            counter.__exit__(*args)  # type: ignore[no-untyped-call]
            totals.append(counter.get_total_flops())

    try:
        run_steps(build(), data, 2, 1, mode=Counted())
    finally:
        set_fused_attn(bool(fused))
    return totals[-1] / 2
