"""What the benchmarks of training share: a quiet Trainer, the same batch again and again, the steps' times."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from vfm import ClassificationTask, SyntheticData
from vfm.data.base import ImageData
from vfm.types import Batch, Labels

WARM = 3
"""Steps that a Clock leaves out."""


def quiet() -> None:
    """Leave standard output to the figures."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def train(
    task: ClassificationTask, data: ImageData, folder: Path | None = None, **options: Any
) -> L.Trainer:
    """Train without bars, logs and sanity checks; without a folder, also without validation and checkpoints."""
    if folder is None:
        options = {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": False} | options
    with tempfile.TemporaryDirectory() as scratch:
        trainer = L.Trainer(
            **options,
            default_root_dir=folder or scratch,
            logger=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, data)
    return trainer


class OneBatch(SyntheticData):
    """A batch of noise, made once, for every step."""

    def __init__(self, size: int, batch: int, steps: int, num_classes: int = 10) -> None:
        super().__init__(num_classes=num_classes, num_images=64, augment="none", batch_size=batch)
        pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
        label = torch.arange(batch) % num_classes
        self.batch = Batch(
            image=pixels, target=Labels(label), index=label, name=[""] * batch, skipped=[]
        )
        self.steps = steps

    def train_dataloader(self) -> Any:
        return DataLoader([self.batch] * self.steps, batch_size=None)  # type: ignore[arg-type]


class Clock(L.Callback):
    """Notes when each step has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        synchronise()
        self.ends.append(time.perf_counter())

    def rate(self, batch: int) -> float:
        """Images/s after the first steps."""
        return batch * (len(self.ends) - WARM) / (self.ends[-1] - self.ends[WARM - 1])


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
