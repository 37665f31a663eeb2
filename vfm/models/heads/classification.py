"""Heads that give one label an image."""

from __future__ import annotations

from torch import Tensor, nn

from vfm.models.heads.head import Head
from vfm.types import FeatureInfo, Features, Raw


class ClassificationHead(Head):
    """Base of heads whose `forward` gives `logits` [N, C], of which one class is true."""

    def decode(self, raw: Raw) -> dict[str, Tensor]:
        """Probabilities `scores`, float32 [N, C], each row summing to 1."""
        return {"scores": raw["logits"].float().softmax(dim=-1)}


class LinearHead(ClassificationHead):
    """One linear layer on the pooled features."""

    def __init__(self, dropout: float = 0.0) -> None:
        """Remember the arguments; the layer is made in `build`.

        Args:
            dropout: Share of features set to zero in training.
        """
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make the layer, with small weights so that training starts near equal scores."""
        self.linear = nn.Linear(info.width, num_labels)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Raw:
        """`logits`, [N, C]."""
        return {"logits": self.linear(self.dropout(features.pooled))}
