"""The largest batch that fits, and what is said of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.tiny import fit, shapes, vit
from vfm.tasks import ClassificationTask, Optim
from vfm.training.oom import LargestBatch, read_peak_memory, reset_peak_memory
from vfm.types import Batch


class Small(ClassificationTask):
    """Stands on a device with memory for 20 images."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen = [*getattr(self, "seen", []), len(batch["image"])]
        if len(batch["image"]) > 20:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return super().training_step(batch, batch_idx)


def small(**changes: Any) -> Small:
    made = vit(**changes)
    return Small(**made._init_args)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_largest_batch_is_found_and_the_rate_scaled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shapes(num_images=240, batch_size=4)
    task = small(optim=Optim(lr=1e-3, warmup_ratio=0.0, min_lr_ratio=1.0))
    with caplog.at_level("INFO"):
        run = fit(tmp_path, task, data, callbacks=[LargestBatch(margin=0.1)])
    assert data.batch_size == 18  # nine tenths of 20
    assert task.seen[-2] == 18
    factor = math.sqrt(18 / 4)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * factor)
    text = caplog.text
    assert "Largest batch that fits: 18 images a process (was 4). Learning rate times 2.12" in text
    assert f"--data.batch_size 18 --model.optim.lr {1e-3 * factor:.3g}" in text
    assert run.global_step == math.ceil(120 / 18)


@pytest.mark.slow
def test_a_batch_is_no_larger_than_the_epoch(tmp_path: Path) -> None:
    data = shapes(num_images=24, batch_size=2)
    fit(tmp_path, vit(), data, callbacks=[LargestBatch()])
    assert data.batch_size <= 12


def test_a_peak_is_seen_and_forgotten() -> None:
    held = reset_peak_memory()
    block = torch.ones(64 * 2**20)
    del block
    assert read_peak_memory() - held > 200 * 2**20
    held = reset_peak_memory()
    assert read_peak_memory() - held < 100 * 2**20
