"""Deepfake head: real or fake, a heatmap of where, and the distance from a memory bank of training features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vfm_runtime.deepfake.evidence import VERDICT_LABELS
from vfm_runtime.errors import OptionError

from vfm.models.heads.head import Head, LinearReading
from vfm.types import FeatureInfo, Features, Raw

# The memory bank holds whole numbers: half an ulp of float32 near 1, and an average of weights copies them as they are
# where it would blend the fractions of different images.
_STEPS = 2**24


class DeepfakeHead(Head):
    """One logit from the direction of the pooled feature, one from each token, and how far from the training images.

    The direction alone (the feature over its length) is what a linear layer on a norm-tuned backbone generalises best
    on (Yermakov et al., 2025). The tokens have a layer of their own, trained on where images were forged: a
    heatmap by construction. A memory bank of the last training features measures what the model has never seen the
    like of (Sun et al., 2022).
    """

    uses = ("pooled", "tokens")
    memory_bank: Tensor

    def __init__(self, normalize: bool = True, patch_width: int = 0, bank_size: int = 512) -> None:
        """Remember the arguments; the layers are made in `build`.

        Args:
            normalize: Divide the pooled feature by its length before the linear layer.
            patch_width: Width of a hidden layer in front of the tokens' logits; 0 for one linear layer.
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
        self.normalize = normalize
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
        self.linear = _build_near_zero(info.width)
        self.patches: nn.Module = _build_near_zero(info.token_width)
        if self.patch_width:
            hidden = nn.Linear(info.token_width, self.patch_width)
            self.patches = nn.Sequential(hidden, nn.GELU(), _build_near_zero(self.patch_width))
        nothing = torch.zeros(self.bank_size, info.width, dtype=torch.int32)
        self.register_buffer("memory_bank", nothing)
        self.register_load_state_dict_pre_hook(_rename_bank)  # type: ignore[no-untyped-call]

    def get_linear(self) -> LinearReading:
        """Return the weight of the one logit."""
        return LinearReading(self.linear.weight, None, self.normalize)

    def forward(self, features: Features) -> Raw:
        """What is said of N images with a grid of h x w tokens.

        Returns:
            `logits` [N]; `feature` [N, D], of length 1; `patches` [N, h, w], a logit for each token.
        """
        pooled = features.pooled.float()
        unit = F.normalize(pooled, dim=-1)
        seen = unit if self.normalize else pooled
        # A sum of products, not a matrix product, which mixed precision would round to 16 bits.
        logits = (seen * self.linear.weight.float()).sum(-1) + self.linear.bias.float()
        patches = self.patches(features.tokens).squeeze(-1)
        side = math.isqrt(patches.shape[1])
        # Stored features have no maps, and are those of a square.
        grid = features.maps[-1].shape[-2:] if features.maps else (side, side)
        return {"logits": logits, "feature": unit, "patches": patches.unflatten(1, tuple(grid))}

    def decode(self, raw: Raw, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Answers in float32.

        Returns:
            `logits` [N], above 0 for fake; `heatmaps` [N, h, w], 0 to 1, how likely each part is forged;
            `distances` [N], 1 minus the largest cosine to a training feature, 0 before any training.
        """
        bank = self.memory_bank.float() / _STEPS
        nearest = (raw["feature"].float() @ bank.T).amax(-1)
        is_filled = (bank.abs().flatten().amax(0) > 0).float()
        return {
            "logits": raw["logits"].float(),
            "heatmaps": raw["patches"].float().sigmoid(),
            "distances": (1 - nearest) * is_filled,
        }

    @torch.no_grad()
    def update_memory_bank(self, feature: Tensor) -> None:
        """Take the features of a training batch, [N, D] of length 1, into the memory bank; the oldest leave it."""
        # Evenly from a batch that is larger than the bank, whose first half may be of one class.
        step = max(1, math.ceil(len(feature) / self.bank_size))
        new = (feature[::step].float() * _STEPS).round().to(torch.int32)
        self.memory_bank.copy_(torch.cat([new, self.memory_bank])[: self.bank_size])


def _build_near_zero(width: int) -> nn.Linear:
    layer = nn.Linear(width, 1)
    nn.init.trunc_normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def _rename_bank(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let a state of version 0.1 be loaded, which calls the memory bank `bank`."""
    if prefix + "bank" in state:
        state[prefix + "memory_bank"] = state.pop(prefix + "bank")
