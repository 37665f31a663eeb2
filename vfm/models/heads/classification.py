"""Heads that label an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vfm_runtime.errors import OptionError
from vfm_runtime.heads_on_features import LEAST_VOTE, AffineHead

from vfm.models.decoder import split_heads
from vfm.models.heads.head import Head, LinearReading
from vfm.types import FeatureInfo, Features, Raw

Reads = Literal["pooled", "map_means", "both"]
Solver = Literal["logistic", "lda", "nearest_mean"]
FeatureScaling = Literal["none", "l2", "standardized"]


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
    """One linear layer on the features of an image, which may be centered and brought to norm 1 before it.

    Attributes:
        normalizes: Whether features are centered and brought to norm 1, as `load_affine` or a checkpoint says.
    """

    uses: tuple[str, ...] = ("pooled",)
    normalizes: bool = False
    center: Tensor
    is_normalized: Tensor

    def __init__(
        self,
        dropout: float = 0.0,
        reads: Reads = "pooled",
        solver: Solver = "logistic",
        scaling: FeatureScaling | None = None,
        c: float | None = None,
    ) -> None:
        """Remember the arguments; the layer is made in `build`.

        Args:
            dropout: Share of features set to zero in training.
            reads: pooled: the vector that the backbone was trained to give; map_means: means of several of its layers;
                both: all of these, joined.
            solver: How the head is solved where it is not trained by steps: logistic regression, LDA (linear
                discriminant analysis), or nearest_mean (the classes' centered means).
            scaling: What features go through when it is solved: none, l2 or standardized; chosen by cross-validation
                where it is null.
            c: Inverse of the penalty of logistic regression, in units of the scaled features; chosen by
                cross-validation where it is null.
        """
        super().__init__()
        if c is not None and not c > 0:
            raise OptionError(f"c is {c}. Give a number above 0, or null for cross-validation.")
        if (c is None) != (scaling is None) and solver == "logistic":
            raise OptionError(
                f"c is {c} and scaling is {scaling}: c is in units of the scaled features. Give both, or neither."
            )
        self.solver, self.scaling, self.c = solver, scaling, c
        self.dropout = nn.Dropout(dropout)
        self.uses = list_reads(reads)

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make the layer, with small weights so that training starts near equal scores."""
        width = count_features(info, self.uses)
        self.linear = _make_last_layer(width, num_labels)
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("is_normalized", torch.tensor(False))

    def load_affine(self, affine: AffineHead) -> None:
        """Take over weights that were solved.

        Args:
            affine: Weight [C, D], bias [C], and what features go through before.
        """
        weight, bias = affine.weight, affine.bias
        if affine.center is not None and not affine.normalizes:
            bias = bias - weight @ affine.center
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(weight))
            self.linear.bias.copy_(torch.from_numpy(bias))
            self.center.zero_()
            if affine.center is not None and affine.normalizes:
                self.center.copy_(torch.from_numpy(affine.center))
            self.is_normalized.fill_(affine.normalizes)
        self.normalizes = affine.normalizes

    def get_linear(self) -> LinearReading | None:
        """Return weight and center; None where features are not the pooled vector alone."""
        if self.uses != ("pooled",):
            return None
        return LinearReading(
            self.linear.weight, self.center if self.normalizes else None, self.normalizes
        )

    def forward(self, features: Features) -> Raw:
        """Return `logits`, [N, C]."""
        values = join_features(features, self.uses)
        if self.normalizes:
            values = F.normalize(values - self.center, dim=-1)
        return {"logits": self.linear(self.dropout(values))}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Checkpoints of before have features go through nothing.
        state_dict.setdefault(f"{prefix}center", torch.zeros_like(self.center))
        state_dict.setdefault(f"{prefix}is_normalized", torch.tensor(False))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        # A plain value, so that the exported graph has no branch.
        self.normalizes = bool(state_dict[f"{prefix}is_normalized"])


class NeighborsHead(ClassificationHead):
    """Nearest neighbors (kNN): stored features vote for their labels, weighed by similarity (Wu et al., 2018).

    Nothing in it learns: `load_neighbors` gives it the features of the training images, and training with a frozen
    backbone does so.
    """

    uses: tuple[str, ...] = ("pooled",)
    references: Tensor
    target: Tensor

    def __init__(self, k: int = 5, temperature: float = 0.07, reads: Reads = "pooled") -> None:
        """Remember the arguments.

        Args:
            k: Number of neighbors that vote.
            temperature: A vote weighs exp(cosine similarity / temperature).
            reads: Features that are compared, as for `LinearHead`.
        """
        super().__init__()
        if k < 1 or temperature <= 0:
            raise OptionError(
                f"k is {k} and temperature {temperature}. Give 1 neighbor or more, and a number above 0."
            )
        self.k = k
        self.temperature = temperature
        self.uses = list_reads(reads)

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make room for the features, of which there are none yet."""
        self.register_buffer("references", torch.zeros(0, count_features(info, self.uses)))
        self.register_buffer("target", torch.zeros(0, num_labels))

    def load_neighbors(self, features: Tensor, target: Tensor) -> None:
        """Store features [M, D] and their labels, zeros and ones [M, C]."""
        device = self.references.device
        self.references = F.normalize(features.float(), dim=-1).to(device)
        self.target = target.float().to(device)

    def forward(self, features: Features) -> Raw:
        """Return the logarithms of the fractions of votes as `logits`, [N, C]; with several labels their logits."""
        units = F.normalize(join_features(features, self.uses), dim=-1)
        nearest = (units @ self.references.T).topk(min(self.k, len(self.references)), dim=1)
        votes = (nearest.values / self.temperature).softmax(dim=1)
        shares = (votes[:, :, None] * self.target[nearest.indices]).sum(dim=1)
        shares = shares.clamp(LEAST_VOTE, 1 - LEAST_VOTE)
        return {"logits": shares.log() - (1 - shares).log() if self.multilabel else shares.log()}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # As many as the checkpoint has.
        for name in ("references", "target"):
            if (values := state_dict.get(f"{prefix}{name}")) is not None:
                setattr(self, name, torch.empty_like(values, device=self.references.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def list_reads(reads: Reads) -> tuple[str, ...]:
    """Return the fields of the features that a head reads.

    Raises:
        OptionError: There is no such choice.
    """
    if reads not in get_args(Reads):
        raise OptionError(f"reads is '{reads}'. Choices: {', '.join(get_args(Reads))}.")
    return ("pooled", "map_means") if reads == "both" else (reads,)


def join_features(features: Features, uses: Sequence[str]) -> Tensor:
    """Return the vectors of N images that a head reads, joined, [N, D]."""
    return torch.cat([getattr(features, name) for name in uses], dim=-1)


def count_features(info: FeatureInfo, uses: Sequence[str]) -> int:
    """Return the width D of what `join_features` gives."""
    widths = {"pooled": info.width, "map_means": sum(info.map_widths)}
    return sum(widths[name] for name in uses)


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
