"""Heads that label an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vfm_runtime.errors import OptionError

from vfm.models.decoder import split_heads
from vfm.models.heads.head import Head
from vfm.types import FeatureInfo, Features, Raw


class ClassificationHead(Head):
    """Base of heads whose `forward` gives `logits` [N, C].

    Attributes:
        multilabel: Whether several labels may apply to an image; the task sets it.
    """

    gives_logits = True
    multilabel: bool = False

    def decode(self, raw: Raw, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Return probabilities `scores`, float32 [N, C]; each row sums to 1 unless labels are independent."""
        logits = raw["logits"].float()
        return {"scores": logits.sigmoid() if self.multilabel else logits.softmax(dim=-1)}


class LinearHead(ClassificationHead):
    """One linear layer on the pooled features."""

    uses = ("pooled",)

    def __init__(self, dropout: float = 0.0) -> None:
        """Remember the arguments; the layer is made in `build`.

        Args:
            dropout: Share of features set to zero in training.
        """
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make the layer, with small weights so that training starts near equal scores."""
        self.linear = _make_last_layer(info.width, num_labels)

    def forward(self, features: Features) -> Raw:
        """Return `logits`, [N, C]."""
        return {"logits": self.linear(self.dropout(features.pooled))}


class MLPHead(ClassificationHead):
    """Two layers on the pooled features: for a frozen backbone whose classes no plane separates."""

    uses = ("pooled",)

    def __init__(self, hidden: int = 512, dropout: float = 0.1) -> None:
        """Remember the arguments; the layers are made in `build`.

        Args:
            hidden: Width of the hidden layer.
            dropout: Share of hidden units set to zero in training.
        """
        super().__init__()
        if hidden < 1:
            raise OptionError(f"hidden is {hidden}. Give the width of the hidden layer, 1 or more.")
        self.hidden = hidden
        self.dropout = nn.Dropout(dropout)

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make the layers."""
        self.norm = nn.LayerNorm(info.width)
        self.inner = nn.Linear(info.width, self.hidden)
        self.outer = _make_last_layer(self.hidden, num_labels)

    def forward(self, features: Features) -> Raw:
        """Return `logits`, [N, C]."""
        hidden = F.gelu(self.inner(self.norm(features.pooled)))
        return {"logits": self.outer(self.dropout(hidden))}


class AttentionPoolHead(ClassificationHead):
    """A learned query looks at every place, then a linear layer: for small or scattered evidence (Lee et al., 2019)."""

    uses = ("tokens",)

    def __init__(self, num_heads: int = 8, dropout: float = 0.0) -> None:
        """Remember the arguments; the layers are made in `build`.

        Args:
            num_heads: Heads of the attention; must divide the width of the tokens.
            dropout: Share of pooled features set to zero in training.
        """
        super().__init__()
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make the layers."""
        width = info.token_width
        if self.num_heads < 1 or width % self.num_heads:
            fitting = [n for n in range(1, 33) if width % n == 0]
            raise OptionError(
                f"num_heads is {self.num_heads}, which does not divide the backbone's width of {width}. "
                f"Choices: {', '.join(map(str, fitting))} (--model.head.num_heads)."
            )
        self.query = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.keys_and_values = nn.Linear(width, 2 * width)
        self.linear = _make_last_layer(width, num_labels)

    def forward(self, features: Features) -> Raw:
        """Return `logits`, [N, C]."""
        keys, values = self.keys_and_values(self.norm(features.tokens)).chunk(2, dim=-1)
        query = self.query.expand(len(keys), -1, -1)
        query, keys, values = (split_heads(x, self.num_heads) for x in (query, keys, values))
        pooled = F.scaled_dot_product_attention(query, keys, values).flatten(1)
        return {"logits": self.linear(self.dropout(pooled))}


def _make_last_layer(width: int, num_labels: int) -> nn.Linear:
    layer = nn.Linear(width, num_labels)
    nn.init.trunc_normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
