"""torchvision's Faster R-CNN with a feature pyramid on a timm backbone: the other side of the detection benchmarks."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vfm.models.weights import load_weights

WIDTH = 256
SIZES = ((32,), (64,), (128,), (256,), (512,))


class Pyramid(nn.Module):
    """Maps of stride 4 to 32 of a timm model, through torchvision's pyramid."""

    out_channels = WIDTH

    def __init__(self, name: str, weights: Path | None) -> None:
        super().__init__()
        whole: Any = timm.create_model(name, num_classes=0)
        if weights is not None:
            load_weights(whole, str(weights))
        self.body: Any = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
        own = self.body.state_dict()
        self.body.load_state_dict({k: v for k, v in whole.state_dict().items() if k in own})
        widths = self.body.feature_info.channels()
        self.pyramid = FeaturePyramidNetwork(widths, WIDTH, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        joined: dict[str, Tensor] = self.pyramid(
            OrderedDict((str(i), m) for i, m in enumerate(maps))
        )
        return joined


def faster_rcnn(name: str, num_classes: int, side: int, weights: Path | None = None) -> FasterRCNN:
    """A model whose input is `side` pixels square, as it is given.

    Args:
        name: A pyramid of timm, such as tf_efficientnet_lite0.
        num_classes: Without the background.
        side: Of the input.
        weights: Of the backbone.
    """
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    anchors = AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * len(SIZES))
    return FasterRCNN(
        Pyramid(name, weights),
        num_classes + 1,
        min_size=side,
        max_size=side,
        image_mean=list(config.mean),
        image_std=list(config.std),
        rpn_anchor_generator=anchors,
    )


def targets(boxes: list[Tensor], labels: list[Tensor]) -> list[dict[str, Tensor]]:
    """As torchvision wants them: corners in pixels, classes counted from 1."""
    return [
        {"boxes": b.reshape(-1, 4).float(), "labels": k.to(torch.int64) + 1}
        for b, k in zip(boxes, labels, strict=True)
    ]
