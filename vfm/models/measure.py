"""Size and cost of a timm model, from its shapes alone: no weights are made, so the largest takes a second."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import config as timm_config, set_fused_attn
from torch.utils.flop_counter import FlopCounterMode


class Size(NamedTuple):
    """What a model weighs and costs."""

    parameters: int
    """Without a classifier."""
    gflops: float
    """Of one image at the model's own input size: 1e9 additions and multiplications, attention counted."""
    width: int
    """Of an image's embedding."""
    patch: int
    """Pixels along one side of a place of the last feature map."""
    image_size: int
    """Side of the input in pixels."""


def measure(name: str) -> Size:
    """Build a model without storage, and count.

    Args:
        name: A name of timm.
    """
    fused = timm_config.use_fused_attn()
    # torch's counter sees no operations inside fused attention: a ViT-B would seem 4 % cheaper, at 518 px 23 %.
    set_fused_attn(False)
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, num_classes=0).eval().requires_grad_(False)
            height, width = resolve_model_data_config(model)["input_size"][1:]
            image = torch.zeros(1, 3, height, width)
        with FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        set_fused_attn(bool(fused))
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        gflops=round(counter.get_total_flops() / 1e9, 2),
        width=int(getattr(model, "head_hidden_size", model.num_features)),
        patch=int(model.feature_info[-1]["reduction"]),
        image_size=height,
    )
