"""Learning rate schedule: a linear warm-up, then half a cosine; the backbone may be frozen at first."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from vfm.training.optim import BACKBONE, Optim


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
