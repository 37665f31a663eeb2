"""Task options: the constructor arguments that all tasks share, with their types, help and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from vfm.models.adapt import Adapt, AdaptOptions
from vfm.models.adaptation import Adaptation
from vfm.models.weights import MIN_COVERAGE
from vfm.training.fine_tuning import NormStats
from vfm.training.optim import Auto, Optim


class TaskOptions(TypedDict, total=False):
    """The `**options` of a task's constructor; a task states its own defaults in `option_defaults`.

    Args:
        pretrained: Fetch the weights that timm names for the backbone.
        weights: A local file of backbone weights, in place of timm's: .safetensors, .pth, or a checkpoint of vfm.
        min_coverage: Least fraction of the backbone's tensors that the file must set.
        drop_path: Rate of stochastic depth in the backbone.
        grad_checkpointing: Compute activations anew in the backward pass: less memory, about a third more time.
        backbone_args: More arguments for timm's create_model, such as embed_dim or depth.
        adapt: Which weights of the backbone learn: full (all), linear (none), ln (norm layers), lora (low-rank
            updates), effort (smallest singular directions of the attention) or partial (the last blocks); or any
            Adaptation, also your own, with its arguments.
        adapt_options: Options of the short names lora, effort and partial.
        optim: Optimizer, schedule, learning rate of the backbone, layer-wise decay and averaging of weights.
        min_steps: Least count of optimizer steps: on a small set, where epochs are short, their number grows to reach
            it. Boxes take 2,000 to 3,000 steps to settle. auto: what a pretrained backbone needs on few labelled
            images, or else 0.
        norm_stats: What the backbone's batch norms normalize by in training: keep (statistics of pretraining), learn
            (those of each batch, which a running average follows), or auto (keep on few images).
        freeze_at: Number of the backbone's first stages, the stem among them, that stay as they are, without a backward
            pass. auto: those of a stride up to 4 pixels where a pretrained backbone meets few images, or else none.
        channels_last: Train on images laid out with their channels last, which makes convolutional nets up to twice as
            fast. auto: EfficientNet, MobileNet, RegNet and ResNet; torch 2.15 crashes on some others on the CPU, such
            as FastViT.
        compile: Compile the backbone with torch.compile for training.
        patience: Validations without a better result after which training stops; null goes on to the end.
    """

    pretrained: bool
    weights: Path | None
    min_coverage: float
    drop_path: float
    grad_checkpointing: bool
    backbone_args: dict[str, Any] | None
    adapt: Adapt | Adaptation
    adapt_options: AdaptOptions
    optim: Optim
    min_steps: int | Auto
    norm_stats: NormStats
    freeze_at: int | Auto
    channels_last: bool | Auto
    compile: bool
    patience: int | None


TASK_DEFAULTS: TaskOptions = {
    "pretrained": True,
    "weights": None,
    "min_coverage": MIN_COVERAGE,
    "drop_path": 0.0,
    "grad_checkpointing": False,
    "backbone_args": None,
    "adapt": "full",
    "adapt_options": AdaptOptions(),
    "optim": Optim(),
    "min_steps": "auto",
    "norm_stats": "auto",
    "freeze_at": 0,
    "channels_last": "auto",
    "compile": False,
    "patience": None,
}

EARLIER_OPTIONS: TaskOptions = {"min_steps": 0, "norm_stats": "learn"}
"""What options mean that a checkpoint of version 0.2 or before does not state, since they came later."""
