"""Deepfake loss: cross-entropy of the image, alignment and uniformity of the features, and the forged mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vfm.deepfake.target import DeepfakeTarget
from vfm.losses import Loss
from vfm.losses.base import check_weights
from vfm.types import Batch, Raw, require_target

_LEAST_UNIFORMITY = 1e-6


class DeepfakeLoss(Loss):
    """Cross-entropy of the image; alignment and uniformity of the features; a map of what was forged.

    Alignment draws the features of a class together, uniformity spreads all of them over the sphere (Wang and Isola,
    2020), as in GenD (Yermakov et al., 2025). Tokens learn from the mask of what was blended in where it is known;
    where it is not, the sharpest tokens stand for the image (multiple-instance learning).
    """

    def __init__(
        self,
        uniformity: float = 0.5,
        alignment: float = 0.1,
        mask: float = 1.0,
        mil: float = 0.1,
    ) -> None:
        """Set the weights beside that of the cross-entropy, which is 1.

        Args:
            uniformity: Weight of the logarithm of the mean Gaussian potential of all pairs of features.
            alignment: Weight of the mean squared distance of two features of one class.
            mask: Weight of cross-entropy and Dice of the tokens, where the mask is known.
            mil: Weight of the cross-entropy of the tokens' smooth maximum, where it is not.

        Raises:
            ValueError: A weight lies outside 0 to 100.
        """
        super().__init__()
        self.weights = {"uniformity": uniformity, "alignment": alignment, "mask": mask, "mil": mil}
        check_weights(**self.weights)

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Sums over the N images of a batch, weighted, from the outputs of a `DeepfakeHead`.

        Returns:
            `classes`, `uniformity`, `alignment`, `mask` and `mil`.
        """
        label, mask = require_target(batch, DeepfakeTarget, self)
        # In float32: distances of near features are lost in 16 bits.
        with torch.autocast(raw["logits"].device.type, enabled=False):
            target = label.float()
            patches, feature = raw["patches"].float(), raw["feature"].float()
            uniformity, alignment = _measure_spread(feature, label)
            masked, unmasked = _compare_masks(patches, target, mask)
            sums = {
                "uniformity": uniformity * len(label),
                "alignment": alignment * len(label),
                "mask": masked,
                "mil": unmasked,
            }
            classes = F.binary_cross_entropy_with_logits(
                raw["logits"].float(), target, reduction="sum"
            )
            return {"classes": classes} | {k: v * self.weights[k] for k, v in sums.items()}


def _measure_spread(feature: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Uniformity and alignment of unit features [N, D], over all pairs and over those of one class."""
    first, second = torch.triu_indices(len(label), len(label), 1, device=label.device)
    squared = (2 - 2 * (feature @ feature.T)[first, second]).clamp(min=0)
    alike = label[first] == label[second]
    nothing = feature.sum() * 0.0  # keeps the graph whole on every rank
    potential = torch.exp(-2 * squared).sum() / max(len(squared), 1)
    uniformity = potential.clamp(min=_LEAST_UNIFORMITY).log() if len(squared) else nothing
    # A sum with zeros, not a selection, whose size would stop the GPU until it is known.
    alignment = (squared * alike).sum() / alike.sum().clamp(min=1)
    return uniformity, alignment + nothing


def _compare_masks(patches: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of the tokens' logits [N, h, w] where masks are known, and where they are not."""
    is_masked = (mask.flatten(1).amin(1) >= 0).float()
    rows, columns = patches.shape[-2:]
    forged = F.adaptive_avg_pool2d(mask.float().clamp(min=0), (rows, columns))
    entropy = F.binary_cross_entropy_with_logits(patches, forged, reduction="none").mean((1, 2))
    # 1 minus Dice (Milletari et al., 2016) of each image, 0 for images of which nothing was forged.
    predicted, area = patches.sigmoid(), forged.sum((1, 2))
    common, both = (predicted * forged).sum((1, 2)), (predicted + forged).sum((1, 2))
    dice = (1 - (2 * common + 1) / (both + 1)) * (area > 0)
    # The mean inside: the maximum of tokens that all say 0 is 0, however many there are.
    sharpest = patches.flatten(1).logsumexp(1) - math.log(rows * columns)
    bag = F.binary_cross_entropy_with_logits(sharpest, target, reduction="none")
    return ((entropy + dice) * is_masked).sum(), (bag * (1 - is_masked)).sum()
