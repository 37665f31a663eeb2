"""Loss of a DETR: Hungarian matching of queries to objects, classes that know how well their box fits, and boxes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from vfm.losses.base import Loss, check_weights
from vfm.losses.iou import compute_ious, to_corners
from vfm.types import Batch, Objects, Raw, require_target

_CLASS_COST, _DISTANCE_COST, _OVERLAP_COST = 2.0, 5.0, 2.0
_ALPHA, _GAMMA = 0.25, 2.0


class DetectionLoss(Loss):
    """Matching, a matchability-aware loss of the classes (DEIM, Huang et al., 2024), L1 and generalized IoU.

    Every layer of the decoder, the proposals and every group of queries learn from all objects.
    """

    def __init__(
        self, classes: float = 1.0, distance: float = 5.0, overlap: float = 2.0, gamma: float = 1.5
    ) -> None:
        """Set the weights.

        Args:
            classes: Weight of the loss of the classes.
            distance: Weight of the L1 loss of center, width and height.
            overlap: Weight of the generalized intersection over union.
            gamma: How much less confident predictions that fit badly, and quiet wrong ones, count.
        """
        super().__init__()
        check_weights(classes=classes, distance=distance, overlap=overlap, gamma=gamma)
        self.weights = {"classes": classes, "distance": distance, "overlap": overlap}
        self.gamma = gamma

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return sums over the objects of a batch; divide by their number over all ranks.

        Returns:
            `classes`, `distance` and `overlap`, weighted, each averaged over groups and summed over layers.
        """
        objects = require_target(batch, Objects, self)
        logits, boxes = raw["logits"].float(), raw["boxes"].float()
        if logits.ndim == 3:  # one layer and one group, as it answers
            logits, boxes = logits[None, :, None], boxes[None, :, None]
        matches = match_queries(logits, boxes, objects)
        matched, true = boxes[matches.query], objects.boxes[matches.object]
        iou, generalized = compute_ious(to_corners(matched), to_corners(true))
        fit = logits.new_zeros(logits.shape)
        right = (*matches.query, objects.labels[matches.object])
        fit[right] = iou.detach().clamp(0, 1) ** self.gamma
        weight = logits.detach().sigmoid() ** self.gamma
        weight[right] = 1.0
        sums = {
            "classes": F.binary_cross_entropy_with_logits(logits, fit, weight, reduction="sum"),
            "distance": (matched - true).abs().sum(),
            "overlap": (1 - generalized).sum(),
        }
        num_groups = logits.shape[2]
        return {name: self.weights[name] * value / num_groups for name, value in sums.items()}


class Matches(NamedTuple):
    """Pairs of query and object, K of them."""

    query: tuple[Tensor, ...]
    """int64 [K] for each of layer, image, group and query: an index into `logits` and `boxes`."""
    object: Tensor
    """int64 [K], position among all objects of the batch."""


@torch.no_grad()
def match_queries(logits: Tensor, boxes: Tensor, objects: Objects) -> Matches:
    """Give every object one query in each layer and group: the assignment of least cost (Carion et al., 2020).

    Args:
        logits: [L, N, G, Q, C], of layers, images, groups, queries, classes.
        boxes: [L, N, G, Q, 4], center, width and height.
        objects: Objects of the N images.
    """
    counts: list[int] = objects.counts.tolist()
    starts = np.cumsum([0, *counts])
    pairs = [np.zeros((5, 0), np.int64)]
    if any(counts):
        table = _compute_costs(logits.float(), boxes.float(), objects).cpu().numpy()
        for layer, image, group in np.ndindex(*table.shape[:3]):
            if count := counts[image]:
                queries, owned = linear_sum_assignment(table[layer, image, group, :, :count])
                index = [np.full(len(queries), value) for value in (layer, image, group)]
                pairs.append(np.stack([*index, queries, owned + starts[image]]))
    *query, position = torch.from_numpy(np.concatenate(pairs, 1)).to(logits.device)
    return Matches(tuple(query), position)


def _compute_costs(logits: Tensor, boxes: Tensor, objects: Objects) -> Tensor:
    """[L, N, G, Q, M], M the most objects of an image; columns beyond an image's own mean nothing."""
    counts: list[int] = objects.counts.tolist()
    padded = [
        torch.nn.utils.rnn.pad_sequence(list(torch.split(part, counts)), batch_first=True)
        for part in (objects.boxes, objects.labels)
    ]
    # [1, N, 1, 1, M, 4], against [L, N, G, Q, 1, 4].
    true = padded[0][None, :, None, None]
    distance = (boxes.unsqueeze(-2) - true).abs().sum(-1)
    overlap = compute_ious(to_corners(boxes).unsqueeze(-2), to_corners(true))[1]
    label = padded[1][None, :, None, None].expand(*logits.shape[:-1], -1)
    # Focal loss of calling a query an object of each class, less that of calling it none.
    probability = logits.sigmoid()
    yes = _ALPHA * (1 - probability) ** _GAMMA * -F.logsigmoid(logits)
    no = (1 - _ALPHA) * probability**_GAMMA * -F.logsigmoid(-logits)
    total = _CLASS_COST * (yes - no).gather(-1, label)
    total = total + _DISTANCE_COST * distance - _OVERLAP_COST * overlap
    # The assignment refuses NaN with a riddle; the loss that follows is NaN too, and is reported with the images.
    return total.nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6)
