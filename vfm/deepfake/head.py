"""The head that tells forged images from real ones, and shows where."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vfm_runtime.deepfake.evidence import VERDICT_LABELS
from vfm_runtime.errors import OptionError

from vfm.models.heads.head import Head
from vfm.types import FeatureInfo, Features, Raw

# The bank holds whole numbers: half an ulp of float32 near 1, and an average of weights copies them as they are
# where it would blend the fractions of different images.
_STEPS = 2**24


class DeepfakeHead(Head):
    """One logit from the direction of the pooled feature, one from each place, and how far from the training images.

    The direction alone (the feature over its length) is what a linear layer on a norm-tuned backbone generalises best
    on (Yermakov et al., 2025). The places answer by a layer of their own, trained on where images were forged: a
    heatmap by construction. A bank of the last training features measures what the model has never seen the like of
    (Sun et al., 2022).
    """

    uses = ("pooled", "tokens")
    bank: Tensor

    def __init__(self, normalise: bool = True, patch_width: int = 0, bank_size: int = 512) -> None:
        """Remember the arguments; the layers are made in `build`.

        Args:
            normalise: Divide the pooled feature by its length before the linear layer.
            patch_width: Width of a hidden layer in front of the places' logits; 0 for one linear layer.
            bank_size: Training features that distances are measured to.

        Raises:
            ValueError: A number lies outside its range.
        """
        super().__init__()
        if patch_width < 0:
            raise OptionError(
                f"patch_width is {patch_width}. Give 0 or more (--model.head.patch_width)."
            )
        if bank_size < 1:
            raise OptionError(f"bank_size is {bank_size}. Give 1 or more (--model.head.bank_size).")
        self.normalise = normalise
        self.patch_width = patch_width
        self.bank_size = bank_size

    def prepare(self, info: FeatureInfo, labels: Sequence[str]) -> None:
        """Make the layers.

        Raises:
            ValueError: The labels are others than real and fake, or in the other order.
        """
        if tuple(labels) != VERDICT_LABELS:
            raise OptionError(
                f"The labels are {list(labels)}. A DeepfakeHead answers {list(VERDICT_LABELS)}, in this order; give "
                "data that says which images are fake (--data DeepfakeData), or a ClassificationHead for other labels."
            )
        super().prepare(info, labels)

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make the layers, with every logit near 0."""
        self.linear = _near_zero(info.width)
        self.patches: nn.Module = _near_zero(info.token_width)
        if self.patch_width:
            hidden = nn.Linear(info.token_width, self.patch_width)
            self.patches = nn.Sequential(hidden, nn.GELU(), _near_zero(self.patch_width))
        nothing = torch.zeros(self.bank_size, info.width, dtype=torch.int32)
        self.register_buffer("bank", nothing)

    def forward(self, features: Features) -> Raw:
        """What is said of N images with a grid of h x w places.

        Returns:
            `logits` [N]; `feature` [N, D], of length 1; `patches` [N, h, w], a logit a place.
        """
        pooled = features.pooled.float()
        unit = F.normalize(pooled, dim=-1)
        seen = unit if self.normalise else pooled
        # A sum of products, not a matrix product, which mixed precision would round to 16 bits.
        logits = (seen * self.linear.weight.float()).sum(-1) + self.linear.bias.float()
        patches = self.patches(features.tokens).squeeze(-1)
        return {"logits": logits, "feature": unit, "patches": patches.unflatten(1, _grid(features))}

    def decode(self, raw: Raw, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Answers in float32.

        Returns:
            `logits` [N], above 0 for fake; `heatmaps` [N, h, w], 0 to 1, how likely each place is forged;
            `distances` [N], 1 minus the largest cosine to a training feature, 0 before any training.
        """
        bank = self.bank.float() / _STEPS
        nearest = (raw["feature"].float() @ bank.T).amax(-1)
        any_known = (bank.abs().flatten().amax(0) > 0).float()
        return {
            "logits": raw["logits"].float(),
            "heatmaps": raw["patches"].float().sigmoid(),
            "distances": (1 - nearest) * any_known,
        }

    @torch.no_grad()
    def remember(self, feature: Tensor) -> None:
        """Take the features of a training batch into the bank; the oldest leave it.

        Args:
            feature: [N, D], of length 1.
        """
        # Evenly from a batch that is larger than the bank, whose first half may be of one class.
        step = max(1, math.ceil(len(feature) / self.bank_size))
        new = (feature[::step].float() * _STEPS).round().to(torch.int32)
        self.bank.copy_(torch.cat([new, self.bank])[: self.bank_size])


def _near_zero(width: int) -> nn.Linear:
    layer = nn.Linear(width, 1)
    nn.init.trunc_normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def _grid(features: Features) -> tuple[int, int]:
    """Rows and columns of the tokens; of stored features, which have no maps, those of a square."""
    if features.maps:
        height, width = features.maps[-1].shape[-2:]
        return height, width
    side = math.isqrt(features.tokens.shape[1])
    return side, side
