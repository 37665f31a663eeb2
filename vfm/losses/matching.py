"""Which query answers for which object: the assignment of least cost (Carion et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from vfm.losses.iou import corners, overlaps
from vfm.types import Objects

_ALPHA, _GAMMA = 0.25, 2.0


class Matches(NamedTuple):
    """Pairs of query and object, K of them."""

    place: tuple[Tensor, ...]
    """int64 [K] for each of layer, image, group and query: an index into `logits` and `boxes`."""
    object: Tensor
    """int64 [K], position among all objects of the batch."""


@dataclass(frozen=True)
class Costs:
    """What a pair of query and object costs."""

    classes: float = 2.0
    """Weight of the focal cost of the class."""
    distance: float = 5.0
    """Weight of the sum of the differences of centre, width and height."""
    overlap: float = 2.0
    """Weight of the negative generalised intersection over union."""


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, objects: Objects, costs: Costs) -> Matches:
    """Give every object one query in each layer and group.

    Args:
        logits: [L, N, G, Q, C], of layers, images, groups, queries, classes.
        boxes: [L, N, G, Q, 4], centre, width and height.
        objects: Of the N images.
        costs: Weights.
    """
    counts: list[int] = objects.counts.tolist()
    starts = np.cumsum([0, *counts])
    found: list[list[np.ndarray]] = [[], [], [], [], []]
    if any(counts):
        table = _costs(logits.float(), boxes.float(), objects, costs).cpu().numpy()
        for layer, image, group in np.ndindex(*table.shape[:3]):
            if number := counts[image]:
                queries, owned = linear_sum_assignment(table[layer, image, group, :, :number])
                for part, value in zip(found[:3], (layer, image, group), strict=True):
                    part.append(np.full(len(queries), value))
                found[3].append(queries)
                found[4].append(owned + starts[image])
    empty = np.zeros(0, np.int64)
    indices = [
        torch.from_numpy(np.concatenate(part) if part else empty).to(logits.device)
        for part in found
    ]
    return Matches(tuple(indices[:4]), indices[4])


def _costs(logits: Tensor, boxes: Tensor, objects: Objects, costs: Costs) -> Tensor:
    """[L, N, G, Q, M], M the most objects of an image; columns beyond an image's own mean nothing."""
    own: list[int] = objects.counts.tolist()
    padded = [
        torch.nn.utils.rnn.pad_sequence(list(torch.split(part, own)), batch_first=True)
        for part in (objects.boxes, objects.labels)
    ]
    # [1, N, 1, 1, M, 4], against [L, N, G, Q, 1, 4].
    true = padded[0][None, :, None, None]
    apart = (boxes.unsqueeze(-2) - true).abs().sum(-1)
    overlap = overlaps(corners(boxes).unsqueeze(-2), corners(true))[1]
    label = padded[1][None, :, None, None].expand(*logits.shape[:-1], -1)
    total = costs.classes * _class_cost(logits).gather(-1, label)
    total = total + costs.distance * apart - costs.overlap * overlap
    # The assignment refuses NaN with a riddle; the loss that follows is NaN too, and is reported with the images.
    return total.nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6)


def _class_cost(logits: Tensor) -> Tensor:
    """Focal loss of calling a query an object of each class, less that of calling it none."""
    probability = logits.sigmoid()
    yes = _ALPHA * (1 - probability) ** _GAMMA * -F.logsigmoid(logits)
    no = (1 - _ALPHA) * probability**_GAMMA * -F.logsigmoid(-logits)
    return yes - no
