"""Exponential moving average (EMA) of the weights, which is steadier than the weights themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WeightEMA(WeightAveraging):
    """Averages the weights of every step; validation, checkpoints and the end of training have the average.

    Its state is in the checkpoint, so a resumed training goes on with both kinds of weights.
    """

    def __init__(self, decay: float) -> None:
        """Set the decay: the fraction of the average that each step keeps.

        It is smaller in the first steps, so that the start is soon forgotten: after n steps the average reaches back
        over a ninth of them at most, which suits short trainings too.
        """
        super().__init__(multi_avg_fn=partial(update_average, decay))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the model, once its head has its layers: Lightning asks callbacks before the task.

        What the same Trainer scores later has weights of its own, such as those of `best.ckpt`, and no average.
        """
        self._average_model = None
        if stage == "fit":
            pl_module.take_labels(trainer.datamodule)  # type: ignore[operator, attr-defined]
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over both kinds of weights for training; what is scored without training has the average already."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


@torch.no_grad()
def update_average(
    decay: float, averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Any
) -> None:
    """Move averaged tensors towards the current ones in place."""
    steps = float(num_averaged)
    if averaged[0].is_floating_point():
        fraction = 1 - min(decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(averaged), list(current), fraction)
    else:
        torch._foreach_copy_(list(averaged), list(current))  # counters of batch norms
