"""Learning rate schedule: a linear warm-up, then half a cosine; the backbone may be frozen at first."""

from __future__ import annotations

import math

import torch
from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import LambdaLR
from vfm_runtime.errors import OptionError

from vfm.training.optim import BACKBONE, Optim


def count_steps(trainer: Trainer, num_batches: int) -> int:
    """Return the optimizer steps of a whole training.

    Not Lightning's own estimate: it keeps the loader that it counts, and so never tells it where to resume.

    Raises:
        OptionError: The training has no end.
    """
    limit = trainer.limit_train_batches
    if isinstance(limit, int):
        num_batches = min(num_batches, limit)
    elif limit is not None:
        num_batches = int(num_batches * limit)
    ends = []
    if trainer.max_epochs is not None and trainer.max_epochs != -1:
        ends.append(trainer.max_epochs * math.ceil(num_batches / trainer.accumulate_grad_batches))
    if trainer.max_steps != -1:
        ends.append(trainer.max_steps)
    if not ends:
        raise OptionError(
            "The learning rate falls towards the end of training, and max_epochs -1 sets none. "
            "Give --trainer.max_epochs or --trainer.max_steps."
        )
    return min(ends)


def build_schedule(adamw: torch.optim.AdamW, num_steps: int, optim: Optim) -> LambdaLR:
    """Return the learning rates of all groups, step by step; those of the backbone are 0 while it is frozen."""
    num_frozen = round(optim.freeze_ratio * num_steps)

    def scale_head(step: int) -> float:
        return compute_learning_rate_factor(step, num_steps, optim)

    def scale_backbone(step: int) -> float:
        return 0.0 if step < num_frozen else scale_head(step)

    parts = [group["part"] for group in adamw.param_groups]
    return LambdaLR(adamw, [scale_backbone if part == BACKBONE else scale_head for part in parts])


def compute_learning_rate_factor(step: int, num_steps: int, optim: Optim) -> float:
    """Return the learning rate at a step as a fraction of the highest.

    It rises linearly, then falls as half a cosine (Loshchilov & Hutter, 2017).
    """
    num_warmup = round(optim.warmup_ratio * num_steps)
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return optim.min_lr_ratio + (1 - optim.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
