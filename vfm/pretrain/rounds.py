"""Rounds of a pretraining: trainings of some seconds each, of which every one ends with a low learning rate."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from vfm_runtime.errors import DataError, OptionError

from vfm.cost.steps import LEAST_IMAGES, trace_memory
from vfm.data import ImageData
from vfm.data.idx import IdxData, find_idx_files
from vfm.data.unlabeled import UnlabeledData
from vfm.pretrain.options import DISTILLATION, METHODS, PretrainOptions
from vfm.tasks.distillation import DistillationTask
from vfm.tasks.pretraining.task import PretrainingTask
from vfm.tasks.self_supervised import SelfSupervisedTask
from vfm.training.meter import RunMeter
from vfm.training.oom import read_free_memory
from vfm.training.optim import Optim
from vfm.training.planning import TRIAL, TimedTrial
from vfm.training.precision import choose_precision

FEWEST_STEPS = 10
"""Steps without which a round makes no sense."""
_FILLED = 0.8
"""Part of the free memory that a batch may fill which an error advises."""
_OVERRUN = 1.25
"""How much longer than foreseen a round may take before it is cut off."""


@dataclass
class Pace:
    """How fast a method trains."""

    startup: float
    """Seconds until the first step has ended."""
    step: float
    """Seconds of a step, with its part of what an epoch takes."""


class Pretrainer:
    """Trains one method on images without labels, round by round."""

    def __init__(self, data: Path, method: str, options: PretrainOptions, seed: int) -> None:
        """Build the model, which starts alike whatever the method.

        Args:
            data: Images to train on.
            method: Name of the method.
            options: What is trained, and how.
            seed: Seed of the start and of the order.

        Raises:
            DataError: There are fewer than two images to train on.
        """
        self.method, self.options, self.seed = method, options, seed
        self.data = open_images(data, options.batch_size, seed)
        self.task = self.build_task()
        self.num_rounds = 0
        self.pace: Pace | None = None

    def build_task(self) -> PretrainingTask:
        """Return a model at its start."""
        options = self.options
        L.seed_everything(self.seed, verbose=False)
        common: dict[str, Any] = {
            "backbone": options.backbone,
            "pretrained": options.pretrained,
            "weights": options.weights,
            "backbone_args": options.backbone_args,
            "image_size": options.image_size,
            "fit": options.fit,
            "optim": Optim(lr=options.lr, warmup_ratio=0.1),
            "min_steps": 0,
        }
        if self.method == DISTILLATION:
            return DistillationTask(
                teacher=str(options.teacher),
                teacher_weights=options.teacher_weights,
                teacher_size=options.teacher_size,
                **common,
            )
        return SelfSupervisedTask(method=METHODS[self.method](), views=options.views, **common)

    def check_memory(self, needed: float | None) -> float | None:
        """Refuse a batch whose step needs more memory than is free: the system would kill the process without a word.

        GPUs are left to the error that torch raises there.

        Args:
            needed: What an earlier look returned, which is not repeated while so much is free; None for none.

        Returns:
            Bytes that a step needs; None where they are not looked at.

        Raises:
            OptionError: It needs more than is free; the message names a batch that fits.
        """
        free = None if torch.cuda.is_available() else read_free_memory()
        batch_size = min(self.options.batch_size, len(self.data.records["train"]))
        # Steps of 2 and 4 images are followed, and such small ones fit.
        if free is None or batch_size <= LEAST_IMAGES:
            return None
        if needed is not None and needed <= free:
            return needed
        predict = trace_memory(self.build_task, self.data, choose_precision())
        if (needed := predict(batch_size)) <= free:
            return needed
        fitting = [size for size in (2**i for i in range(1, 20)) if predict(size) < _FILLED * free]
        remedy = f"--batch-size {fitting[-1]}, or a" if fitting else "a"
        raise OptionError(
            f"A step of {self.method} with {batch_size} images at once needs about {needed / 1e9:.1f} GB of memory, "
            f"and {free / 1e9:.1f} GB are free. Give {remedy} smaller --image-size, --backbone or "
            "--views.num_local."
        )

    def measure_pace(self) -> Pace:
        """Time some steps of a model that is thrown away."""
        trial = TimedTrial()
        self._fit(self.build_task(), [trial], dict(TRIAL))
        step = statistics.median(trial.steps or trial.changes)
        change = max(0.0, statistics.median(trial.changes) - step) if trial.changes else 0.0
        self.pace = Pace(trial.startup, step + change / trial.epoch_steps)
        return self.pace

    def train(self, seconds: float) -> tuple[int, RunMeter, float]:
        """Train for about some seconds; return the steps, the meter and the seconds that it took.

        Args:
            seconds: Time of the round, with its start.
        """
        pace = self.pace or self.measure_pace()
        steps = max(FEWEST_STEPS, int((seconds - pace.startup) / pace.step))
        # Each round has an order and views of its own.
        self.data.seed = self.seed + self.num_rounds
        self.num_rounds += 1
        meter, start = RunMeter(), time.perf_counter()
        trainer = self._fit(
            self.task,
            [],
            {
                **TRIAL,
                "max_steps": steps,
                "max_time": timedelta(seconds=_OVERRUN * max(seconds, steps * pace.step) + 1),
                "enable_progress_bar": sys.stderr.isatty(),
            },
        )
        taken = time.perf_counter() - start
        steps = trainer.global_step
        if steps:
            pace.step = max(taken - pace.startup, 1e-6) / steps
        return steps, meter, taken

    def save(self, path: Path) -> None:
        """Write a checkpoint, with what only training needs."""
        trainer = L.Trainer(logger=False, enable_model_summary=False, default_root_dir=path.parent)
        trainer.strategy.connect(self.task)
        partial = path.with_suffix(".partial")
        trainer.save_checkpoint(partial, weights_only=True)
        partial.replace(path)

    def restore(self, path: Path, num_rounds: int) -> None:
        """Go on from a checkpoint of `save`, after some rounds."""
        self.data.preprocess = self.task.preprocess
        self.data.setup("fit")
        self.task.take_labels(self.data)
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.task.load_state_dict(state["state_dict"])
        self.num_rounds = num_rounds

    def _fit(
        self, task: PretrainingTask, callbacks: list[Callback], settings: dict[str, Any]
    ) -> L.Trainer:
        trainer = L.Trainer(
            precision=choose_precision(),
            devices=1,
            callbacks=callbacks,
            **(settings | {"limit_val_batches": 0}),
        )
        trainer.fit(task, self.data)
        return trainer


def open_images(path: Path, batch_size: int, seed: int) -> ImageData:
    """Open the images to train on: those of the train split where the data states one, or else all.

    Raises:
        DataError: There are fewer than two.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist. Give a folder, a table or IDX files of images.")
    module = IdxData if path.is_dir() and find_idx_files(path) else UnlabeledData
    data = module(path, val_fraction=0.0, batch_size=batch_size, seed=seed)
    data.setup("fit")
    count = len(data.records["train"])
    if count < 2:
        raise DataError(f"{path} has {count} images to train on. Give two or more.")
    return data
