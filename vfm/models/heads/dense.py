"""Dense head: every place of a feature pyramid says what it is part of and where that ends; the best boxes stay."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from vfm_runtime.errors import OptionError

from vfm.models.heads.detection import DetectionHead, to_corners, to_original
from vfm.models.pyramid import FeaturePyramid
from vfm.types import FeatureInfo, Features, Raw

_PRIOR = 0.01
_REACH = 2.0
"""Distance to a box's sides before anything was learned, in strides."""
_CANDIDATES = 300
"""Pairs of box and class that suppression chooses among."""
_ROUNDS = 16
_POOLED_STRIDE = 16


class DenseHead(DetectionHead):
    """Boxes and classes from every point of a pyramid, without anchors (FCOS; Tian et al., 2019), then suppression.

    Many points learn from each object, so that few steps suffice. Its loss is `DenseLoss`. Suppression is a part of the
    exported graph, made of plain tensor operations.

    Attributes:
        loaded_labels: Labels whose rows of the class layer came from the file of `weights`.
    """

    uses = ("maps",)
    embeds_boxes = True
    loaded_labels: tuple[str, ...] = ()

    def __init__(
        self,
        width: int = 128,
        depth: int = 2,
        max_boxes: int = 100,
        suppress_above: float = 0.6,
        weights: str | None = "auto",
    ) -> None:
        """Remember the arguments; the layers are made in `build`.

        Args:
            width: Channels of the pyramid, a multiple of 16.
            depth: 3 x 3 convolutions before the classes, and as many before the boxes.
            max_boxes: Most boxes in the answer for an image.
            suppress_above: IoU with a better box of the same class above which a box is left out.
            weights: What a training starts from: objects, a packaged head that has learned from generated scenes what
                an object is; none, a random start; or a file, such as a checkpoint of an earlier training with this
                head, whose classes of the same name go on while others are new. By default objects where that was
                measured to help; the log says what it is.
        """
        super().__init__()
        if width < 16 or width % 16:
            raise OptionError(f"width is {width}. Give a multiple of 16 (--model.head.width).")
        for name, value in {"depth": depth, "max_boxes": max_boxes}.items():
            if value < 1:
                raise OptionError(f"{name} is {value}. Give 1 or more (--model.head.{name}).")
        if not 0 < suppress_above <= 1:
            raise OptionError(
                f"suppress_above is {suppress_above}. Give an IoU above 0, at most 1 (--model.head.suppress_above)."
            )
        self.width, self.depth = width, depth
        self.max_boxes, self.suppress_above = max_boxes, suppress_above
        self.weights = weights

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make the layers, with low scores everywhere so that training does not start with a flood of objects."""
        self.pyramid = FeaturePyramid(info.map_widths, info.map_strides, self.width)
        # The last of the backbone's maps whose stride is nearest to 16: boxes are embedded by what lies in them there.
        distances = [abs(math.log2(stride / _POOLED_STRIDE)) for stride in info.map_strides]
        self._pooled = max(i for i, d in enumerate(distances) if d == min(distances))
        self.class_tower = _make_tower(self.width, self.depth)
        self.box_tower = _make_tower(self.width, self.depth)
        self.classes = nn.Conv2d(self.width, num_labels, 3, padding=1)
        self.sides = nn.Conv2d(self.width, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(self.pyramid.levels)))
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.constant_(self.classes.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]
        nn.init.normal_(self.sides.weight, std=0.01)
        nn.init.constant_(self.sides.bias, math.log(_REACH))  # type: ignore[arg-type]

    def forward(self, features: Features) -> Raw:
        """Return what every point of the pyramid says, the fine ones first. N images, P points, C labels.

        Returns:
            `logits` [N, P, C], `boxes` [N, P, 4] (center, width and height as fractions of the input), and `points`
            [N, P, 2], where they look from. In evaluation also `features` [N, P, D], what classes are told by, and
            `map` [N, E, h, w], a map of the backbone, of which boxes are embedded.
        """
        levels = self.pyramid(features.maps)
        parts = [
            self._look(grid, level, scale)
            for grid, level, scale in zip(levels, self.pyramid.levels, self.scales, strict=True)
        ]
        names = ("logits", "boxes", "points", "features")
        columns = zip(names, zip(*parts, strict=True), strict=True)
        raw = {n: torch.cat(each, 1) for n, each in columns if n != "features" or not self.training}
        return raw if self.training else {**raw, "map": features.maps[self._pooled]}

    def _look(self, grid: Tensor, stride: int, scale: Tensor) -> tuple[Tensor, ...]:
        """Return logits, boxes, points and features of one level, a map [N, D, h, w]."""
        tower = self.class_tower(grid)
        logits = self.classes(tower).flatten(2).transpose(1, 2)
        # Sides stay float32: in half precision a box of many strides has few digits.
        sides = (scale * self.sides(self.box_tower(grid)).float()).clamp(max=8.0).exp()
        height, width = grid.shape[-2:]
        rows, columns = (
            (torch.arange(n, device=grid.device, dtype=torch.float32) + 0.5) / n
            for n in (height, width)
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        points = torch.stack([x, y], -1).reshape(1, -1, 2)
        cell = points.new_tensor([1 / width, 1 / height])
        left_top, right_bottom = (sides.flatten(2).transpose(1, 2)).chunk(2, -1)
        first, last = points - left_top * cell, points + right_bottom * cell
        boxes = torch.cat([(first + last) / 2, last - first], -1)
        features = tower.flatten(2).transpose(1, 2)
        return logits, boxes, points.expand(grid.shape[0], -1, -1), features

    @property
    def max_objects(self) -> int:
        """Most boxes of an answer."""
        return self.max_boxes

    def decode(self, raw: Raw, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Return the best pairs of box and class that no better box of the class covers: at most `max_boxes`."""
        logits, boxes = raw["logits"].float(), raw["boxes"].float()
        num_labels = logits.shape[-1]
        scores = logits.sigmoid().flatten(1)
        scores, index = scores.topk(min(_CANDIDATES, scores.shape[1]))
        point, labels = index // num_labels, index % num_labels
        chosen = _take(boxes, point)
        remaining = suppress(to_corners(chosen), labels, self.suppress_above)
        number = min(self.max_boxes, index.shape[1])
        scores, order = (scores * remaining).topk(number)
        chosen = _take(chosen, order)
        answer = {
            "boxes": to_original(chosen, geometry),
            "labels": labels.gather(1, order),
            "scores": scores,
        }
        if "features" in raw:
            features = _take(raw["features"].float(), point.gather(1, order))
            pooled = pool_boxes(raw["map"].float(), to_corners(chosen))
            parts = [nn.functional.normalize(part, dim=-1) for part in (pooled, features)]
            answer["box_embeddings"] = torch.cat(parts, -1) / math.sqrt(len(parts))
        return answer


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Return rows [N, K, D] of values [N, P, D] by their indices [N, K]."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def pool_boxes(grid: Tensor, corners: Tensor) -> Tensor:
    """Return the mean of a map [N, D, h, w] within each box, [N, K, D]; a cell counts by the part that a box covers.

    Args:
        grid: Map of the backbone, or of a pyramid, [N, D, h, w].
        corners: Left, top, right and bottom as fractions of the input, [N, K, 4].
    """
    corners = corners.clamp(0, 1)

    def cover(first: Tensor, last: Tensor, number: int) -> Tensor:
        edge = torch.arange(number, device=grid.device, dtype=torch.float32) / number
        end = torch.minimum(last.unsqueeze(-1), edge + 1 / number)
        return (end - torch.maximum(first.unsqueeze(-1), edge)).clamp(min=0)

    height, width = grid.shape[-2:]
    rows = cover(corners[..., 1], corners[..., 3], height)
    columns = cover(corners[..., 0], corners[..., 2], width)
    weight = (rows.unsqueeze(-1) * columns.unsqueeze(-2)).flatten(2)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)
    return torch.matmul(weight, grid.flatten(2).transpose(1, 2))


def suppress(corners: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return 1 for boxes that stay, 0 for those that a better one of their class covers, [N, K].

    Greedy non-maximum suppression, all boxes at once: a box stays if no better one that stays covers it, repeated until
    nothing changes (Cluster-NMS; Zheng et al., 2020). So many rounds settle chains of as many boxes.

    Args:
        corners: Left, top, right and bottom of each image's boxes, the best first, [N, K, 4].
        labels: Class of each box, int64 [N, K].
        threshold: IoU above which a box covers another.
    """
    rows, columns = corners.unsqueeze(2), corners.unsqueeze(1)
    extent = torch.minimum(rows[..., 2:], columns[..., 2:]) - torch.maximum(
        rows[..., :2], columns[..., :2]
    )
    shared = extent.clamp(min=0).prod(-1)
    area = (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(-1)
    union = area.unsqueeze(2) + area.unsqueeze(1) - shared
    same = labels.unsqueeze(2) == labels.unsqueeze(1)
    # [N, K, K]: whether the row's box is covered by the column's, which is better.
    covers = ((shared > threshold * union) & same).float().tril(-1)
    remaining = torch.ones_like(corners[..., 0])
    for _ in range(_ROUNDS):
        remaining = (torch.matmul(covers, remaining.unsqueeze(-1)).squeeze(-1) < 0.5).float()
    return remaining


def _make_tower(width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(16, width),
            nn.SiLU(),
        ]
    return nn.Sequential(*layers)
