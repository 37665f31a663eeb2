"""Optimizer: AdamW with its parameter groups, clipped gradients, and all options of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from timm import optim as timm_optim
from torch import nn
from vfm_runtime.errors import OptionError

from vfm.models.adapt import FullFineTuning
from vfm.renames import accept_old_keys

BACKBONE = "backbone"
"""The `part` of the backbone's parameter groups."""

Auto = Literal["auto"]
"""Stands for the value that suits the data and the model; `fine_tuning.py` chooses it when training starts."""


@accept_old_keys
@dataclass(frozen=True)
class Optim:
    """How the weights are trained: AdamW, a linear warm-up, a cosine to near zero, clipped gradients.

    Raises:
        ValueError: A value is outside its range.
    """

    lr: float | None = None
    """Highest learning rate, reached after the warm-up; null takes what suits the adaptation and the data."""
    weight_decay: float = 0.05
    """Decay of weight matrices; biases, norms and embeddings that timm exempts have none."""
    warmup_ratio: float = 0.05
    """Fraction of all steps in which the learning rate grows from zero."""
    min_lr_ratio: float = 0.01
    """Learning rate of the last step as a fraction of `lr`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging of gradients and of their squares."""
    max_grad_norm: float | None = 1.0
    """Largest norm of all gradients together; null leaves them. A Trainer's gradient_clip_val goes before it."""

    layer_decay: float | Auto | None = "auto"
    """Each block's learning rate as a fraction of the next one's; the last block and the head have all of it. 0.65 to
    0.9 keeps early layers of a pretrained backbone near their start. null: the same rate everywhere."""
    backbone_factor: float | Auto = "auto"
    """Learning rate of the backbone as a fraction of the head's; 1 where `lr` is given and this is not."""
    freeze_ratio: float = 0.0
    """Fraction of all steps, from the first, in which the head learns alone."""
    ema: float | None = None
    """Decay of a running average of the weights, such as 0.999, which is then validated, saved, exported. null: off."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        ranges = {
            "lr": (self.lr is None or self.lr > 0, "above 0, or null"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "warmup_ratio": (0 <= self.warmup_ratio < 1, "from 0 to below 1"),
            "min_lr_ratio": (0 <= self.min_lr_ratio <= 1, "from 0 to 1"),
            "betas": (
                len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
                "two numbers from 0 to below 1",
            ),
            "max_grad_norm": (
                self.max_grad_norm is None or self.max_grad_norm > 0,
                "above 0, or null",
            ),
            "layer_decay": (
                self.layer_decay is None or self.layer_decay == "auto" or 0 < self.layer_decay <= 1,
                "above 0, at most 1, null or auto",
            ),
            "backbone_factor": (
                self.backbone_factor == "auto" or 0 < self.backbone_factor <= 10,
                "above 0, up to 10, or auto",
            ),
            "freeze_ratio": (0 <= self.freeze_ratio < 1, "from 0 to below 1"),
            "ema": (self.ema is None or 0 < self.ema < 1, "between 0 and 1, or null"),
        }
        for name, (good, expected) in ranges.items():
            if not good:
                raise OptionError(
                    f"optim.{name} is {getattr(self, name)}; it must be {expected}. Change --model.optim.{name}."
                )


def has_scaler(trainer: Trainer) -> bool:
    """Return whether gradients are scaled, as in 16-mixed."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def clip_gradients(
    trainer: Trainer, adamw: torch.optim.Optimizer, value: float | None, algorithm: str | None
) -> None:
    """Clip gradients, those of a fused optimizer too."""
    kind = GradClipAlgorithmType(algorithm or "norm")
    plugin = trainer.precision_plugin
    if has_scaler(trainer):
        plugin.clip_gradients(adamw, value or 0.0, kind)
    else:  # the mixed precision's own method refuses a fused optimizer here too, without need
        Precision.clip_gradients(plugin, adamw, value or 0.0, kind)


def build_optimizer(
    backbone: Any, head: nn.Module, optim: Optim, *, fused: bool = True
) -> torch.optim.AdamW:
    """Return AdamW over all trainable weights, decayed ones apart from the others."""
    exempt = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    layer_decay = None if optim.layer_decay == "auto" else optim.layer_decay
    if layer_decay is None:
        layers = timm_optim.param_groups_weight_decay(
            backbone, optim.weight_decay, no_weight_decay_list=exempt
        )
    else:
        layers = timm_optim.param_groups_layer_decay(
            backbone, optim.weight_decay, exempt, layer_decay=layer_decay
        )
    parts = {
        BACKBONE: (layers, 1.0 if optim.backbone_factor == "auto" else optim.backbone_factor),
        "head": (timm_optim.param_groups_weight_decay(head, optim.weight_decay), 1.0),
    }
    highest = FullFineTuning.learning_rate if optim.lr is None else optim.lr
    groups = []
    for part, (part_groups, factor) in parts.items():
        for group in part_groups:
            if group["params"]:
                # timm's own optimizers would multiply it in; a schedule of Lightning only scales what is here.
                rate = highest * factor * group.pop("lr_scale", 1.0)
                groups.append({**group, "lr": rate, "part": part})
    return torch.optim.AdamW(groups, lr=highest, betas=optim.betas, fused=fused)
