"""DETR, a head that finds objects without non-maximum suppression, on the maps of any backbone."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from vfm_runtime.errors import OptionError

from vfm.models.decoder import MLP, DecoderLayer, embed_boxes, move_boxes
from vfm.models.heads.detection import DetectionHead, to_original
from vfm.models.pyramid import Projector
from vfm.types import FeatureInfo, Features, Raw

Size = Literal["nano", "small", "base"]

_PRIOR = 0.01
# Width and height that a cell proposes before it has learned anything, as a share of the image's.
_ANCHOR = 0.05
_PYRAMID_STRIDE = 16


class _Shape(NamedTuple):
    num_queries: int
    num_groups: int
    width: int
    hidden: int
    num_layers: int
    depth: int


_SHAPES: dict[Size, _Shape] = {
    "nano": _Shape(100, 3, 128, 512, 3, 1),
    "small": _Shape(200, 6, 192, 1024, 3, 2),
    "base": _Shape(300, 6, 256, 2048, 4, 3),
}


class DetrHead(DetectionHead):
    """Boxes and classes from learned queries, in the line of LW-DETR (Chen et al., 2024) and RF-DETR (2025).

    The best cells of the map propose boxes; queries refine them by looking around each. In training several groups of
    queries learn from the same objects (Group DETR, Chen et al., 2023); one of them answers, with no object twice, so
    that nothing has to be suppressed afterwards.
    """

    uses = ("maps",)

    def __init__(
        self,
        size: Size = "nano",
        num_queries: int | None = None,
        num_groups: int | None = None,
        num_layers: int | None = None,
        fine: bool = False,
    ) -> None:
        """Remember the arguments; the layers are made in `build`.

        Args:
            size: nano (width 128, 100 queries), small (192, 200) or base (256, 300).
            num_queries: Most objects in an image, in place of the size's own.
            num_groups: Groups of queries in training; more learn faster, and take more memory.
            num_layers: Layers of the decoder.
            fine: Look at a map of half the stride, for small objects: four times as many cells.
        """
        super().__init__()
        if size not in get_args(Size):
            raise OptionError(f"size is '{size}'. Choices: {', '.join(get_args(Size))}.")
        numbers = {"num_queries": num_queries, "num_groups": num_groups, "num_layers": num_layers}
        chosen = {name: value for name, value in numbers.items() if value is not None}
        for name, value in chosen.items():
            if value < 1:
                raise OptionError(f"{name} is {value}. Give 1 or more (--model.head.{name}).")
        self.shape = _SHAPES[size]._replace(**chosen)
        self.fine = fine

    @property
    def max_objects(self) -> int:
        """Number of queries: each finds one object."""
        return self.shape.num_queries

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make the layers, with low scores everywhere so that training does not start with a flood of objects."""
        shape = self.shape
        plain = len(set(info.map_strides)) == 1
        stride = info.map_strides[-1] if plain else _PYRAMID_STRIDE
        self.projector = Projector(
            info.map_widths,
            info.map_strides,
            shape.width,
            stride // 2 if self.fine else stride,
            shape.depth,
        )
        self.proposers = nn.ModuleList(
            _Proposer(shape.width, num_labels) for _ in range(shape.num_groups)
        )
        self.queries = nn.Parameter(torch.randn(shape.num_groups, shape.num_queries, shape.width))
        self.position = MLP([2 * shape.width, shape.width, shape.width])
        self.layers = nn.ModuleList(
            DecoderLayer(shape.width, shape.hidden) for _ in range(shape.num_layers)
        )
        self.classes = _make_class_layer(shape.width, num_labels)
        self.boxes = _make_box_layers(shape.width)

    def forward(self, features: Features) -> Raw:
        """Return what every query says, of N images and C labels.

        Returns:
            `logits` [N, Q, C] and `boxes` [N, Q, 4] (center, width and height as shares of the input). In training, of
            G groups and L layers: `logits` [L + 1, N, G, Q, C] and `boxes` [L + 1, N, G, Q, 4]; the first are the
            proposals of the map.
        """
        grid = self.projector(features.maps)
        size = (grid.shape[-2], grid.shape[-1])
        memory = grid.flatten(2).transpose(1, 2)
        # A box around the center of every cell, [1, h * w, 4].
        rows, columns = (torch.arange(n, device=memory.device, dtype=torch.float32) for n in size)
        y, x = torch.meshgrid((rows + 0.5) / size[0], (columns + 0.5) / size[1], indexing="ij")
        side = torch.full_like(x, _ANCHOR)
        anchors = torch.stack([x, y, side, side], -1).reshape(1, -1, 4)
        proposers = list(self.proposers)[: self.shape.num_groups if self.training else 1]
        proposed = [p(memory, anchors, self.shape.num_queries) for p in proposers]
        logits, reference = (torch.stack(part, 1) for part in zip(*proposed, strict=True))
        all_logits, all_boxes = [logits], [reference]
        num_images, num_groups, num_queries = reference.shape[:3]
        # The map's proposals learn by their own loss, not through the queries that start from them.
        start = reference.detach().flatten(1, 2)
        position = self.position(embed_boxes(start, self.shape.width // 2).to(memory.dtype))
        queries = self.queries[:num_groups, :num_queries].flatten(0, 1)
        queries = queries.expand(num_images, -1, -1)
        for layer in self.layers:
            queries = layer(queries, position, start, memory, size, num_groups)
            if self.training or layer is self.layers[-1]:
                all_logits.append(self.classes(queries).view(*reference.shape[:3], -1))
                all_boxes.append(move_boxes(start, self.boxes(queries)).view_as(reference))
        if self.training:
            return {"logits": torch.stack(all_logits), "boxes": torch.stack(all_boxes)}
        return {"logits": all_logits[-1].squeeze(1), "boxes": all_boxes[-1].squeeze(1)}

    def decode(self, raw: Raw, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Return the best pairs of box and class: `num_queries` for each image, fewer where the map has fewer cells."""
        logits, boxes = raw["logits"].float(), raw["boxes"].float()
        num_labels = logits.shape[-1]
        scores, index = logits.sigmoid().flatten(1).topk(boxes.shape[1])
        query = (index // num_labels).unsqueeze(-1).expand(-1, -1, 4)
        chosen = boxes.gather(1, query)
        corners = to_original(chosen, geometry)
        return {"boxes": corners, "labels": index % num_labels, "scores": scores}


class _Proposer(nn.Module):
    """A box and class logits in every cell of the map; the best cells go on."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.classes = _make_class_layer(width, num_labels)
        self.boxes = _make_box_layers(width)

    def forward(self, memory: Tensor, anchors: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
        """Return logits [N, Q, C] and boxes [N, Q, 4] of the best cells; fewer where the map has not as many."""
        memory = self.norm(self.project(memory))
        logits = self.classes(memory)
        number = min(num_queries, logits.shape[1])
        best = logits.amax(-1).topk(number, 1).indices.unsqueeze(-1)
        chosen = memory.gather(1, best.expand(-1, -1, memory.shape[-1]))
        reference = anchors.expand(memory.shape[0], -1, -1).gather(1, best.expand(-1, -1, 4))
        picked = logits.gather(1, best.expand(-1, -1, logits.shape[-1]))
        return picked, move_boxes(reference, self.boxes(chosen))


def _make_class_layer(width: int, num_labels: int) -> nn.Linear:
    layer = nn.Linear(width, num_labels)
    nn.init.constant_(layer.bias, -math.log((1 - _PRIOR) / _PRIOR))
    return layer


def _make_box_layers(width: int) -> MLP:
    layers = MLP([width, width, width, 4])
    last = layers[-1]
    nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return layers
