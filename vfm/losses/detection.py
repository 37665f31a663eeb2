"""The loss of a DETR: classes that know how well their box fits, and boxes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from vfm_runtime.errors import OptionError

from vfm.losses.base import Loss
from vfm.losses.iou import corners, overlaps
from vfm.losses.matching import Costs, match
from vfm.types import Batch, Objects, Raw, require_target


class DetectionLoss(Loss):
    """Matching, a matchability-aware loss of the classes (DEIM, Huang et al., 2024), L1 and generalised IoU.

    Every layer of the decoder, the proposals and every group of queries learn from all objects.
    """

    def __init__(
        self,
        classes: float = 1.0,
        distance: float = 5.0,
        overlap: float = 2.0,
        gamma: float = 1.5,
    ) -> None:
        """Set the weights.

        Args:
            classes: Of the loss of the classes.
            distance: Of the L1 loss of centre, width and height.
            overlap: Of the generalised intersection over union.
            gamma: How much less confident answers that fit badly, and quiet wrong ones, count.
        """
        super().__init__()
        given = {"classes": classes, "distance": distance, "overlap": overlap, "gamma": gamma}
        for name, value in given.items():
            if not 0 <= value <= 100:
                raise OptionError(
                    f"{name} is {value}. Give a number from 0 to 100 (--model.loss.{name})."
                )
        self.weights = (classes, distance, overlap)
        self.gamma = gamma
        self.costs = Costs()

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Sums over the objects of a batch; divide by their number over all ranks.

        Args:
            raw: Outputs of a `DetrHead`, in training or evaluation.
            batch: The same images with their `Objects`.

        Returns:
            `classes`, `distance` and `overlap`, weighted, each averaged over groups and summed over layers.
        """
        objects = require_target(batch, Objects, self)
        logits, boxes = raw["logits"].float(), raw["boxes"].float()
        if logits.ndim == 3:  # one layer and one group, as it answers
            logits, boxes = logits[None, :, None], boxes[None, :, None]
        matches = match(logits, boxes, objects, self.costs)
        found, true = boxes[matches.place], objects.boxes[matches.object]
        iou, generalised = overlaps(corners(found), corners(true))
        fit = logits.new_zeros(logits.shape)
        right = (*matches.place, objects.labels[matches.object])
        fit[right] = iou.detach().clamp(0, 1) ** self.gamma
        weight = logits.detach().sigmoid() ** self.gamma
        weight[right] = 1.0
        sums = (
            F.binary_cross_entropy_with_logits(logits, fit, weight, reduction="sum"),
            (found - true).abs().sum(),
            (1 - generalised).sum(),
        )
        num_groups = logits.shape[2]
        names = ("classes", "distance", "overlap")
        return {
            name: factor * value / num_groups
            for name, factor, value in zip(names, self.weights, sums, strict=True)
        }
